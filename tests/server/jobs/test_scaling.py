"""How many workers there are: what waits is worth them, and one that is needed no more goes without losing anything."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from server.jobs.scaling import SHRINK_AFTER_S, Scaler
from server.workers.process import Worker, WorkerOptions, Workers
from server.workers.transport import Process, Transport
from tests.server.workers.test_process import COMMAND, Witness, until


class Given:
    """What a dispatcher would know. Args of `held` by the name of a worker."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.is_full = True
        self.resting: set[str] = set()

    def held(self, worker: Worker) -> int:
        return self.of[worker.name]

    def has_room(self) -> bool:
        return not self.is_full

    def rest_of(self, worker: Worker) -> str | None:
        return "draining" if worker.name in self.resting else None

    def is_done(self, worker: Worker) -> bool:
        return not self.of[worker.name]


class Nowhere:
    """A cluster without room."""

    async def start(self, device: str, note: Callable[[str], object]) -> Process:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        pass


class Case:
    """A scaler from 1 to 3, a clock, and what waits."""

    def __init__(self, transport: Transport | None = None) -> None:
        self.witness, self.given = Witness(), Given()
        options = WorkerOptions(("flux-shapes",), command=COMMAND)
        self.workers = Workers("node", (), options, self.witness, transport)
        self.waiting, self.now, self.is_resting = 0, 0.0, False
        self.scaler = Scaler(
            self.workers, self.given, lambda: self.waiting, 1, 3, lambda: self.is_resting, lambda: self.now
        )

    def look(self, after_s: float = 0.0) -> list[str]:
        self.now += after_s
        self.scaler.look()
        return [worker.device for worker in self.workers.staying]


@asynccontextmanager
async def case(transport: Transport | None = None) -> AsyncIterator[Case]:
    made = Case(transport)
    try:
        yield made
    finally:
        await made.workers.stop()


def run(steps: Callable[[Case], None]) -> None:
    async def main() -> None:
        async with case(Nowhere()) as made:
            steps(made)
            await asyncio.sleep(0)

    asyncio.run(main())


def test_as_many_workers_as_what_waits_is_worth_but_never_fewer_or_more_than_said() -> None:
    def steps(case: Case) -> None:
        assert case.look() == ["ray:0"]
        case.waiting = 4
        assert case.look() == ["ray:0"]
        case.waiting = 5
        assert case.look() == ["ray:0", "ray:1"]
        case.waiting = 1_000
        assert case.look() == ["ray:0", "ray:1", "ray:2"]

    run(steps)


def test_what_waits_beside_free_workers_waits_for_something_else() -> None:
    def steps(case: Case) -> None:
        case.waiting, case.given.is_full = 1_000, False
        assert case.look() == ["ray:0"]

    run(steps)


def test_a_node_that_rests_starts_no_more() -> None:
    """Nobody there takes anything, so all that waits looks as if it waited for room."""

    def steps(case: Case) -> None:
        case.waiting = 5
        case.look()
        case.given.resting = {worker.name for worker in case.workers}
        case.waiting, case.is_resting = 1_000, True
        assert case.look() == ["ray:0", "ray:1"]
        case.given.resting, case.is_resting = set(), False
        assert case.look() == ["ray:0", "ray:1", "ray:2"]

    run(steps)


def test_another_takes_the_place_of_a_worker_that_was_drained() -> None:
    def steps(case: Case) -> None:
        assert case.look() == ["ray:0"]
        (drained,) = case.workers
        case.given.resting = {drained.name}
        assert case.look() == ["ray:0", "ray:1"]
        case.waiting = 1_000
        assert case.look() == ["ray:0", "ray:1", "ray:2", "ray:3"], "three take requests"
        case.waiting = 0
        case.look()
        assert drained in case.workers.staying, "it is the operator's"
        assert len(case.look(SHRINK_AFTER_S)) == 3
        case.look()
        assert len(case.look(SHRINK_AFTER_S)) == 2
        case.given.resting.clear()
        case.look()
        assert len(case.look(SHRINK_AFTER_S)) == 1, "it takes requests again, so one is too many"

    run(steps)


def test_a_drained_worker_whose_machine_is_taken_away_comes_back_nowhere() -> None:
    async def main() -> None:
        async with case() as made:
            made.look()
            (drained,) = made.workers
            await until(lambda: drained.is_ready)
            made.given.resting = {drained.name}
            made.look()
            assert len(made.workers.staying) == 2
            assert drained.pid is not None
            os.kill(drained.pid, signal.SIGKILL)
            await until(lambda: bool(made.witness.deaths))
            await until(lambda: made.look() == ["ray:1"])
            await until(lambda: made.look() == ["ray:1"] and drained not in list(made.workers))

    asyncio.run(main())


def test_one_goes_at_a_time_after_it_was_not_needed_for_long() -> None:
    def steps(case: Case) -> None:
        case.waiting = 12
        assert len(case.look()) == 3
        case.waiting = 0
        assert len(case.look()) == 3
        case.waiting = 12
        assert len(case.look(SHRINK_AFTER_S)) == 3, "the wait begins anew when all are needed"
        case.waiting = 0
        case.look()
        assert len(case.look(SHRINK_AFTER_S)) == 2
        assert len(case.look()) == 2
        assert len(case.look(SHRINK_AFTER_S)) == 1
        assert len(case.look(10 * SHRINK_AFTER_S)) == 1

    run(steps)


def test_a_worker_that_goes_ends_what_it_holds_first() -> None:
    async def main() -> None:
        async with case() as made:
            made.waiting = 5
            made.look()
            first, second = made.workers
            await until(lambda: first.is_ready and second.is_ready)
            made.waiting = 0
            made.given.of[second.name] = made.given.of[first.name] = 1
            made.look()
            made.look(SHRINK_AFTER_S)
            (gone,) = [worker for worker in made.workers if worker.is_retiring]
            assert gone not in made.workers.ready
            made.look()
            await asyncio.sleep(0.1)
            assert gone.pid is not None, "it still holds a request"
            made.given.of[gone.name] = 0
            made.look()
            await until(lambda: gone not in list(made.workers))
            assert len(made.witness.deaths) == 1, "whatever it had claimed is given up"
            assert len(made.workers.ready) == 1

    asyncio.run(main())
