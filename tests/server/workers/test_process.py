"""Worker processes: real children that speak real frames, killed, hung and broken on purpose."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import ssl
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from models import host_memory
from pipelines.protocol.frames import Finished, Frame, Progress, Submit
from server.workers.child import ChildProcess, ChildProcesses, exit_of
from server.workers.process import MAX_BACKOFF_S, WORKER_COMMAND, Worker, WorkerOptions, Workers, WorkerState

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "tests.server.scripted_worker")
PARAMS = {"prompt": "a red circle", "width": 8, "height": 8, "seed": 1, "num_images": 1, "num_inference_steps": 3}


class Witness:
    """Writes down what the workers report."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.deaths: list[str] = []

    def on_frame(self, worker: Worker, frame: Frame) -> None:
        self.frames.append(frame)

    def on_death(self, worker: Worker, owner: str) -> None:
        self.deaths.append(owner)


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the state of another process has no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def one_worker(witness: Witness, hang_s: float = 30.0, device: str = "cpu") -> AsyncIterator[Worker]:
    workers = Workers("node", [device], WorkerOptions(("flux-shapes",), hang_s=hang_s, command=COMMAND), witness)
    workers.start()
    try:
        yield next(iter(workers))
    finally:
        await workers.stop()


def understood_by_the_worker(arguments: list[str]) -> Namespace:
    """Imported here: the tests of the node need this file's helpers and not torch."""
    from pipelines.worker.__main__ import parse_arguments

    return parse_arguments(arguments[len(WORKER_COMMAND) :])


def test_the_real_worker_understands_what_it_is_started_with() -> None:
    options = WorkerOptions(("flux-shapes", "a/b"), "float32", "fp8", "regular", tuning="kernels=torch", memory_gb=0.5)
    given = options.argv(5, "cuda:1")
    understood = understood_by_the_worker(given)
    assert (understood.fd, understood.device, understood.model) == (5, "cuda:1", ["flux-shapes", "a/b"])
    assert (understood.dtype, understood.quantization, understood.memory_gb) == ("float32", "fp8", 0.5)
    assert understood.tuning == "kernels=torch"
    assert understood.acceleration == "regular"
    assert understood_by_the_worker(WorkerOptions(("m",)).argv(5, "cpu")).memory_gb is None
    assert understood_by_the_worker(WorkerOptions(("m",), no_mmap=True).argv(5, "cpu")).no_mmap


def test_the_worker_is_told_what_to_draw_before_it_is_ready() -> None:
    options = WorkerOptions(("m",), warmup="full", warmup_sizes=((1024, 768), (512, 512)))
    understood = understood_by_the_worker(options.argv(5, "cpu"))
    assert (understood.warmup, understood.warmup_size) == ("full", [(1024, 768), (512, 512)])


def test_compiled_kernels_are_kept_in_the_data_folder_unless_the_operator_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    given = WorkerOptions(("m",), cache_dir=tmp_path).environment()
    assert given["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert given["TRITON_CACHE_DIR"] == "/elsewhere"
    assert "TORCHINDUCTOR_CACHE_DIR" not in WorkerOptions(("m",)).environment()


def test_a_worker_loads_runs_a_request_and_stops_cleanly() -> None:
    witness = Witness()

    async def main() -> tuple[int | None, str]:
        async with one_worker(witness) as worker:
            await until(lambda: worker.is_ready)
            assert "flux-shapes" in worker.models
            described = worker.describe()
            assert (described["state"], described["device_name"], described["fraction"]) == ("ready", "a script", 1.0)
            pid = worker.pid
            worker.send(Submit("a", 1, PARAMS))
            await until(lambda: any(isinstance(frame, Finished) for frame in witness.frames))
            await until(lambda: worker.heartbeat is not None and worker.heartbeat.steps == 3)
        return pid, worker.state

    pid, state = asyncio.run(main())
    assert state is WorkerState.STOPPED
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert [frame.step for frame in witness.frames if isinstance(frame, Progress)] == [1, 2, 3]


def test_a_node_that_stood_still_does_not_take_its_worker_for_dead() -> None:
    witness = Witness()

    async def main() -> int:
        async with one_worker(witness, hang_s=0.4) as worker:
            await until(lambda: worker.is_ready)
            for _ in range(3):
                time.sleep(1.0)  # noqa: ASYNC251 - the node stands still
                await asyncio.sleep(0.3)
            return worker.restarts

    assert (asyncio.run(main()), witness.deaths) == (0, [])


def test_a_worker_that_the_kernel_killed_for_memory_is_told_from_another_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counter is the only trace: the process itself ends by the same signal."""
    monkeypatch.setenv("SCRIPTED_LOAD_S", "60")
    kills = [0]
    monkeypatch.setattr(host_memory, "kills", lambda: kills[0])

    async def main() -> tuple[str | None, bool]:
        async with one_worker(Witness()) as worker:
            await until(lambda: worker.state is WorkerState.LOADING)
            kills[0] += 1
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: worker.state is WorkerState.RESTARTING)
            await asyncio.sleep(1.0)
            return worker.last_error, worker.state is WorkerState.RESTARTING

    told, waits = asyncio.run(main())
    assert "killed by the kernel: the memory ran out" in str(told)
    assert waits, "a model that does not fit will not fit a moment later"


def test_a_worker_that_dies_in_a_stop_is_not_replaced() -> None:
    witness = Witness()

    async def main() -> WorkerState:
        workers = Workers("node", ["cpu"], WorkerOptions(("flux-shapes",), command=COMMAND), witness)
        workers.start()
        (worker,) = workers
        await until(lambda: worker.is_ready)
        workers.start_no_other()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: worker.state is WorkerState.STOPPED)
        await workers.stop()
        return worker.state

    asyncio.run(main())
    assert len(witness.deaths) == 1, "its claims are given up all the same"


def test_a_killed_worker_is_noticed_and_replaced_at_once() -> None:
    witness = Witness()

    async def main() -> tuple[str, float, float]:
        async with one_worker(witness) as worker:
            await until(lambda: worker.is_ready)
            owner, killed_at = worker.owner, time.monotonic()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: bool(witness.deaths))
            noticed_s = time.monotonic() - killed_at
            await until(lambda: worker.is_ready)
            assert worker.owner != owner
            assert (worker.restarts, worker.last_error) == (1, "killed by SIGKILL")
            return owner, noticed_s, time.monotonic() - killed_at

    owner, noticed_s, back_s = asyncio.run(main())
    assert witness.deaths == [owner]
    assert noticed_s < 1
    assert back_s < 10


def test_what_a_worker_sent_before_it_died_still_counts() -> None:
    witness = Witness()

    async def main() -> None:
        async with one_worker(witness) as worker:
            await until(lambda: worker.is_ready)
            worker.send(Submit("a", 1, {**PARAMS, "width": 1024, "height": 1024, "num_inference_steps": 1}))
            worker.send(Submit("b", 1, {**PARAMS, "prompt": "silent exit"}))
            await until(lambda: bool(witness.deaths))

    asyncio.run(main())
    kinds = [type(frame).__name__ for frame in witness.frames]
    assert "Started" in kinds


def test_a_hung_worker_is_killed_and_replaced() -> None:
    witness = Witness()

    async def main() -> str | None:
        async with one_worker(witness, hang_s=0.5) as worker:
            await until(lambda: worker.is_ready)
            first = worker.pid
            worker.send(Submit("a", 1, {**PARAMS, "prompt": "hang"}))
            await until(lambda: worker.is_ready and worker.pid != first)
            return worker.last_error

    assert asyncio.run(main()) == "no sign of life for 0.5 s, killed"


def test_a_worker_that_sends_no_frames_but_noise_is_replaced() -> None:
    witness = Witness()

    async def main() -> str | None:
        async with one_worker(witness) as worker:
            await until(lambda: worker.is_ready)
            worker.send(Submit("a", 1, {**PARAMS, "prompt": "babble"}))
            await until(lambda: bool(witness.deaths))
            return worker.last_error

    assert "no frame" in str(asyncio.run(main()))


class Severed(ChildProcesses):
    """Children whose connections can be made to fail as those to another machine do."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(options.argv, options.environment)
        self.failures: list[Exception] = []
        self.last: ChildProcess | None = None

    async def start(self, device: str, note: Callable[[str], object]) -> ChildProcess:
        if self.failures:
            raise self.failures.pop()
        self.last = await super().start(device, note)
        return self.last


@asynccontextmanager
async def one_severed(witness: Witness) -> AsyncIterator[tuple[Worker, Severed]]:
    options = WorkerOptions(("flux-shapes",), command=COMMAND)
    transport = Severed(options)
    workers = Workers("node", ["cpu"], options, witness, transport)
    workers.start()
    try:
        yield next(iter(workers)), transport
    finally:
        await workers.stop()


@pytest.mark.parametrize(
    "exc",
    [
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ssl.SSLError(1, "bad record mac"),
        RuntimeError("a fault of ours"),
    ],
    ids=["no route", "tls", "fault"],
)
def test_a_worker_whose_connection_fails_in_any_way_is_given_up_and_replaced(
    exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    witness = Witness()

    async def main() -> None:
        async with one_severed(witness) as (worker, transport):
            await until(lambda: worker.is_ready)
            owner = worker.owner
            assert transport.last is not None
            transport.last.reader.set_exception(exc)
            await until(lambda: witness.deaths == [owner])
            await until(lambda: worker.is_ready and worker.owner != owner)

    asyncio.run(main())
    is_told = any(record.exc_info is not None for record in caplog.records)
    assert is_told is isinstance(exc, RuntimeError), "only a fault of ours has a traceback"


def test_a_fault_while_a_worker_is_started_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    witness = Witness()

    async def main() -> None:
        async with one_severed(witness) as (worker, transport):
            transport.failures.append(ValueError("no such name"))
            await until(lambda: worker.is_ready)
            assert worker.restarts == 1
            assert worker.last_error == "cannot start: no such name"

    asyncio.run(main())
    assert "ValueError" in caplog.text
    assert witness.deaths == [], "nothing was claimed"


def test_a_broken_setup_is_not_restarted_in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_EXIT", "3")
    witness = Witness()

    async def main() -> Worker:
        async with one_worker(witness) as worker:
            await until(lambda: worker.state is WorkerState.RESTARTING)
            await asyncio.sleep(0.3)
            assert (worker.restarts, worker._backoff_s()) == (0, MAX_BACKOFF_S)
            return worker

    assert asyncio.run(main()).last_error == "the checkpoint is not here"


def test_restarts_back_off_up_to_a_limit_and_a_finished_job_resets_them() -> None:
    witness = Witness()
    worker = Worker("node/0", "cpu", WorkerOptions(("flux-shapes",)), witness)
    delays = []
    for _ in range(40):
        worker._note_death(exit_of(-signal.SIGKILL))
        delays.append(worker._backoff_s())
    assert delays[:4] == [0.0, 0.2, 0.4, 0.8]
    assert delays[-1] == MAX_BACKOFF_S
    worker._take(Finished("a", 1, {}))
    worker._note_death(exit_of(-signal.SIGKILL))
    assert worker._backoff_s() == 0.0


def test_a_command_that_cannot_start_is_reported_and_tried_again() -> None:
    witness = Witness()

    async def main() -> tuple[str | None, int]:
        workers = Workers("node", ["cpu"], WorkerOptions(("m",), command=("/no/such/program",)), witness)
        (worker,) = workers
        workers.start()
        await until(lambda: worker.restarts >= 2)
        await workers.stop()
        return worker.last_error, worker.restarts

    error, _ = asyncio.run(main())
    assert str(error).startswith("cannot start")


def test_what_a_worker_prints_and_logs_reaches_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with one_worker(Witness(), device="cpu") as worker:
            with caplog.at_level("INFO", logger="fluxserve.worker"):
                await until(lambda: worker.is_ready and "is loaded" in caplog.text)

    asyncio.run(main())
    said = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert ("INFO", "cpu: scripted worker is loaded") in said
    assert ("WARNING", "cpu: I am only a script") in said


def test_a_fault_in_our_own_handling_is_not_the_workers_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Witness):
        def on_frame(self, worker: Worker, frame: Frame) -> None:
            super().on_frame(worker, frame)
            if isinstance(frame, Progress):
                raise RuntimeError("our own bug")

    witness = Clumsy()

    async def main() -> None:
        async with one_worker(witness) as worker:
            await until(lambda: worker.is_ready)
            worker.send(Submit("a", 1, PARAMS))
            await until(lambda: any(isinstance(frame, Finished) for frame in witness.frames))

    asyncio.run(main())
    assert witness.deaths == []
    assert "our own bug" in caplog.text


def test_workers_end_with_a_killed_node() -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.server.workers.test_process import Witness, one_worker, until\n"
        "async def main():\n"
        "    async with one_worker(Witness()) as worker:\n"
        "        await until(lambda: worker.is_ready)\n"
        "        print(worker.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    node = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    worker = psutil.Process(int(node.stdout.readline()))
    node.kill()
    node.communicate()
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert alive == []
