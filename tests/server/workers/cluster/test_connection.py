"""A worker's own connection to its node: real TLS, a real child process, and no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import psutil
import pytest

from pipelines.protocol.frames import Finished, Picture, Progress, Submit
from server.workers.child import EXIT_BROKEN
from server.workers.cluster.actor import Outcome, Task, carry
from server.workers.cluster.door import Door
from server.workers.cluster.transport import PlacedProcess
from server.workers.process import Worker, WorkerOptions, Workers, WorkerState
from tests.ports import free_port
from tests.server.workers.test_process import PARAMS, Witness, until

ARGUMENTS = WorkerOptions(("flux-shapes",)).arguments("cpu")


class Nearby:
    """Carries workers in this process, over the connection that they would take from another machine."""

    def __init__(self, door: Door, change: Callable[[Task], Task] = lambda task: task) -> None:
        self.door = door
        self.change = change
        self.carried: list[asyncio.Task[Outcome]] = []

    async def start(self, device: str, note: Callable[[str], object]) -> PlacedProcess:
        token, visit = self.door.expect()
        task = Task("127.0.0.1", self.door.port, self.door.ca, token, "tests.server.scripted_worker", ARGUMENTS)
        outcome = asyncio.create_task(self._outcome(self.change(task)))
        self.carried.append(outcome)
        try:
            await asyncio.wait({visit, outcome}, return_when=asyncio.FIRST_COMPLETED)
            if not visit.done():
                raise OSError(outcome.result().how)
        except BaseException:
            self.door.send_away(visit)
            raise
        return PlacedProcess(visit.result(), outcome, lambda: None)

    async def _outcome(self, task: Task) -> Outcome:
        try:
            return Outcome(await carry(task))
        except OSError as exc:
            return Outcome(None, str(exc))

    async def close(self) -> None:
        self.door.close()
        await asyncio.gather(*self.carried)


@asynccontextmanager
async def placed(witness: Witness, change: Callable[[Task], Task] = lambda task: task) -> AsyncIterator[Worker]:
    door = Door("127.0.0.1")
    await door.open()
    options = WorkerOptions(("flux-shapes",), hang_s=30.0)
    workers = Workers("node", ["ray:0"], options, witness, Nearby(door, change))
    workers.start()
    try:
        yield next(iter(workers))
    finally:
        await workers.stop()


def test_a_worker_elsewhere_does_what_a_child_does() -> None:
    witness = Witness()

    async def main() -> tuple[int, WorkerState]:
        async with placed(witness) as worker:
            await until(lambda: worker.is_ready)
            worker.send(Submit("a", 1, PARAMS | {"width": 1024, "height": 1024}))
            await until(lambda: any(isinstance(frame, Finished) for frame in witness.frames))
            assert worker.host
            assert worker.pid is not None
            pid = worker.pid
        return pid, worker.state

    pid, state = asyncio.run(main())
    assert (psutil.pid_exists(pid), state) == (False, WorkerState.STOPPED)
    assert [frame.step for frame in witness.frames if isinstance(frame, Progress)] == [1, 2, 3]
    (picture,) = [frame for frame in witness.frames if isinstance(frame, Picture)]
    assert len(picture.pixels) == 1024 * 1024 * 3


def test_its_death_is_noticed_and_another_is_started() -> None:
    witness = Witness()

    async def main() -> tuple[str, str | None]:
        async with placed(witness) as worker:
            await until(lambda: worker.is_ready)
            owner = worker.owner
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: worker.is_ready and bool(witness.deaths))
            return owner, worker.last_error

    owner, error = asyncio.run(main())
    assert (witness.deaths, error) == ([owner], "killed by SIGKILL")


def test_its_exit_status_counts_as_a_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_EXIT", str(EXIT_BROKEN))
    witness = Witness()

    async def main() -> str | None:
        async with placed(witness) as worker:
            await until(lambda: worker.state is WorkerState.RESTARTING)
            await asyncio.sleep(0.3)
            assert worker.restarts == 0, "it is not started again in haste"
            return worker.last_error

    assert asyncio.run(main()) == "the checkpoint is not here"


def test_it_ends_with_the_connection_to_its_node() -> None:
    """Whatever ended that: nothing of a node that died or was cut off keeps a device."""
    witness = Witness()

    async def main() -> None:
        async with placed(witness) as worker:
            await until(lambda: worker.is_ready)
            process = psutil.Process(worker.pid)
            worker.send(Submit("a", 1, PARAMS | {"prompt": "hang"}))
            await until(lambda: any(not isinstance(frame, Progress) for frame in witness.frames))
            assert worker._writer is not None
            worker._writer.transport.abort()
            await until(lambda: bool(witness.deaths) and not process.is_running())

    asyncio.run(main())
    assert len(witness.deaths) == 1


def test_a_worker_that_takes_another_for_its_node_sends_it_nothing() -> None:
    async def main() -> str | None:
        stranger = Door("127.0.0.1")
        await stranger.open()
        async with placed(Witness(), lambda task: replace(task, port=stranger.port)) as worker:
            await until(lambda: worker.last_error is not None)
        stranger.close()
        return worker.last_error

    assert "certificate" in str(asyncio.run(main()))


async def greeting(door: Door, line: bytes) -> bytes:
    """What the door answers to a connection that says this."""
    context = ssl.create_default_context(cadata=door.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
    writer.write(line)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_a_token_admits_once_and_nothing_else_does() -> None:
    async def main() -> None:
        door = Door("127.0.0.1")
        await door.open()
        token, visit = door.expect()
        for line in (
            b"\n",
            b"[]\n",
            b"{}\n",
            b"GET / HTTP/1.1\r\n",
            b"\xff\n",
            json.dumps({"token": token[:-1], "pid": 1, "host": "h"}).encode() + b"\n",
            json.dumps({"token": token, "pid": "no", "host": "h"}).encode() + b"\n",
            b"x" * (8 << 20) + b"\n",
        ):
            assert await greeting(door, line) == b""
        assert not visit.done()
        hello = json.dumps({"token": token, "pid": 7, "host": "h"}).encode() + b"\n"
        again = asyncio.create_task(greeting(door, hello))
        came = await asyncio.wait_for(visit, 5)
        assert (came.pid, came.host) == (7, "h")
        assert await greeting(door, hello) == b"", "a second time"
        came.writer.close()
        await again
        _, forgotten = door.expect()
        door.send_away(forgotten)
        await asyncio.sleep(0)
        assert door._expected == {}
        door.close()

    asyncio.run(main())


def test_without_tls_nobody_is_heard() -> None:
    async def main() -> bytes:
        door = Door("127.0.0.1")
        await door.open()
        token, visit = door.expect()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(json.dumps({"token": token, "pid": 1, "host": "h"}).encode() + b"\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert not visit.done()
        door.close()
        return answer

    assert b"{" not in asyncio.run(main())


def test_a_published_address_is_waited_behind_on_all_of_this_machines() -> None:
    published = "192.0.2.7"  # of documentation: nobody's

    async def main() -> None:
        door = Door(published, free_port())
        await door.open()
        token, visit = door.expect()
        _, writer = await asyncio.open_connection(
            "127.0.0.1", door.port, ssl=ssl.create_default_context(cadata=door.ca), server_hostname=published
        )
        writer.write(json.dumps({"token": token, "pid": 7, "host": "h"}).encode() + b"\n")
        came = await asyncio.wait_for(visit, 5)
        assert came.pid == 7
        came.writer.close()
        writer.close()
        door.close()
        with pytest.raises(OSError, match=r"is no address of this machine: .* needs a fixed port"):
            await Door(published).open()

    asyncio.run(main())
