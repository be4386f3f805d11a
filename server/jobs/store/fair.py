"""Whose turn it is: waiting jobs are taken from every tenant in turn, so that nobody's thousand hide another's one.

Each tenant pays with the work that its jobs were estimated at when they were claimed; who has paid least is next. One
who comes back after a pause has saved nothing up: it joins where the others are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sortedcontainers import SortedList

from server.jobs.store.job import Job, JobStatus, Standing

Place = tuple[float, int]
"""(queue_rank, seq): the order within one tenant's line."""

MEGAPIXEL = 2**20


def work(job: Standing) -> float:
    """See `work_of`."""
    return work_of(job.params or {})


def work_of(params: Mapping[str, Any]) -> float:
    """Megapixel steps that a request asks for: what a worker's time is roughly proportional to."""
    pixels = params.get("width", 1024) * params.get("height", 1024)
    return float(params.get("num_images", 1) * params.get("num_inference_steps", 1) * pixels / MEGAPIXEL)


@dataclass
class _Tenant:
    """One tenant's line, how many of its jobs run, and what it has had since it came."""

    had: float
    line: SortedList[Place] = field(default_factory=SortedList)
    running: int = 0


class TenantLines:
    """The waiting jobs of every tenant; not safe to use from several threads."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._reached = 0.0
        """What the one whose turn was last had had then: newcomers begin here."""
        self._rounds = _Rounds()

    def join(self, tenant: str, place: Place) -> None:
        """A job waits."""
        own = self._of(tenant)
        if not own.line:
            own.had = max(own.had, self._reached)
        own.line.add(place)
        self._rounds.add(len(own.line), 1)

    def leave(self, tenant: str, place: Place) -> None:
        """It waits no longer."""
        own = self._of(tenant)
        self._rounds.add(len(own.line), -1)
        own.line.remove(place)
        self._forget(tenant)

    def start(self, tenant: str, cost: float) -> None:
        """A job of so much work was claimed."""
        own = self._of(tenant)
        own.running += 1
        self._reached = max(self._reached, own.had)
        own.had += cost

    def stop(self, tenant: str) -> None:
        """It runs no longer."""
        self._of(tenant).running -= 1
        self._forget(tenant)

    def resume(self, tenant: str) -> None:
        """A job was found running, as when a store opens: nothing is paid for it."""
        self._of(tenant).running += 1

    def position(self, tenant: str, place: Place) -> int:
        """How many are claimed before it if everybody's jobs are alike: in each round one of every tenant."""
        return self._rounds.up_to(int(self._of(tenant).line.bisect_left(place)))

    def __len__(self) -> int:
        """Tenants that something is remembered of."""
        return len(self._tenants)

    def length(self, tenant: str) -> int:
        """How many of its jobs wait."""
        own = self._tenants.get(tenant)
        return 0 if own is None else len(own.line)

    def turns(self, now: float, at_most: Callable[[str], int | None] | None = None) -> Turns:
        """The turns of one claim. Args: at_most: how many jobs of a tenant may run at once; None for any number."""
        return Turns(
            [_Turn(name, own.had, own.running, list(own.line.islice(0, AHEAD))) for name, own in self._waiting()],
            now,
            at_most or (lambda tenant: None),
        )

    def _waiting(self) -> Iterator[tuple[str, _Tenant]]:
        return ((name, own) for name, own in self._tenants.items() if own.line)

    def _of(self, tenant: str) -> _Tenant:
        return self._tenants.setdefault(tenant, _Tenant(self._reached))

    def _forget(self, tenant: str) -> None:
        """One with nothing here that is owed nothing would be made anew just the same."""
        own = self._tenants[tenant]
        if not own.line and not own.running and own.had <= self._reached:
            del self._tenants[tenant]


AHEAD = 16
"""Places of a tenant that one claim looks at, to tell young low-priority jobs from others."""


@dataclass
class _Turn:
    name: str
    had: float
    running: int
    places: list[Place]
    taken: int = 0

    @property
    def place(self) -> Place:
        return self.places[min(self.taken, len(self.places) - 1)]


class Turns:
    """The tenants in the order of one claim, which may be of several jobs."""

    def __init__(self, waiting: list[_Turn], now: float, at_most: Callable[[str], int | None]) -> None:
        self._now = now
        self._at_most = at_most
        self._by_name = {turn.name: turn for turn in waiting}
        self._heap = [self._entry(turn) for turn in waiting]
        heapq.heapify(self._heap)

    def note(self, before: Job | None, after: Job | None) -> None:
        """Take a change into account that was made after the lines were looked at."""
        for job, change in ((before, -1), (after, 1)):
            if job is not None and job.status is JobStatus.RUNNING and job.tenant in self._by_name:
                self._by_name[job.tenant].running += change

    def take(self, limit: int, line_of: Callable[[str], Iterable[Job]]) -> list[Job]:
        """Up to `limit` jobs, one a turn. Args: line_of: a tenant's jobs that may be claimed, in their order."""
        taken: list[Job] = []
        lines: dict[str, Iterator[Job]] = {}
        while len(taken) < limit and (turn := self._next()) is not None:
            if turn.name not in lines:
                lines[turn.name] = iter(line_of(turn.name))
            job = next(lines[turn.name], None)
            if job is not None:
                taken.append(job)
                turn.had += work(job)
                turn.running += 1
                turn.taken += 1
                heapq.heappush(self._heap, self._entry(turn))
        return taken

    def _next(self) -> _Turn | None:
        while self._heap:
            turn = self._by_name[heapq.heappop(self._heap)[-1]]
            limit = self._at_most(turn.name)
            if limit is None or turn.running < limit:
                return turn
        return None

    def _entry(self, turn: _Turn) -> tuple[bool, float, Place, str]:
        """A low-priority job that is still young yields to everybody's normal ones."""
        return turn.place[0] > self._now, turn.had, turn.place, turn.name


class _Rounds:
    """How many tenants have at least n jobs waiting, for every n, and sums of these: a Fenwick tree."""

    def __init__(self) -> None:
        self._sums = [0, 0]

    def add(self, length: int, change: int) -> None:
        """One tenant's line has become, or was, so long."""
        while length >= len(self._sums):
            # Doubling keeps every sum, and the new last one is that of all.
            self._sums += [0] * (len(self._sums) - 2) + [self._sums[-1]]
        while length < len(self._sums):
            self._sums[length] += change
            length += length & -length

    def up_to(self, length: int) -> int:
        """Jobs in everybody's first `length` places."""
        total = 0
        while length > 0:
            total += self._sums[length]
            length -= length & -length
        return total
