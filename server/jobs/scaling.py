"""How many workers there are where their number is not that of this machine's devices: what waits decides."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

from server.jobs.store.errors import StoreError
from server.workers.process import Worker, Workers

logger = logging.getLogger("fluxserve.scale")

PER_WORKER = 4
"""Requests that one worker is worth starting for."""
SHRINK_AFTER_S = 120.0
"""Fewer are needed for so long before one goes: loading a model again takes minutes."""
LOOK_S = 1.0


class Given(Protocol):
    """What the dispatcher knows of each worker's requests."""

    def held(self, worker: Worker) -> int: ...

    def has_room(self) -> bool: ...

    def rest_of(self, worker: Worker) -> str | None: ...

    def is_done(self, worker: Worker) -> bool: ...


class Scaler:
    """Keeps between `low` and `high` workers that take requests. One that was told to rest is not among them: it is
    about to be taken away, and another takes its place.

    Args: waiting: requests that nobody has claimed. is_resting: whether the whole node was told to: then all stays.
    """

    def __init__(
        self,
        workers: Workers,
        given: Given,
        waiting: Callable[[], int],
        low: int,
        high: int,
        is_resting: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._given = given
        self._waiting = waiting
        self._is_resting = is_resting
        self._low = low
        self._high = high
        self._clock = clock
        self._too_many_since: float | None = None
        self._at_rest: dict[Worker, str] = {}
        """The process that each worker at rest was when it was told to."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self.look()
            except StoreError as exc:
                logger.warning("how many workers are needed is not known now: %s", exc)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Add what is missing at once; let one go that has not been needed for long."""
        for worker in self._workers:
            if worker.is_retiring and self._given.is_done(worker):
                worker.leave()
        if self._is_resting():
            return
        self._let_go_of_the_taken_away()
        taking, wanted = self._taking, self._wanted()
        if len(taking) <= wanted:
            self._too_many_since = None
        for _ in range(wanted - len(taking)):
            self._add()
        if len(taking) > wanted and self._is_time_to_shrink():
            self._shrink()

    @property
    def _taking(self) -> list[Worker]:
        """Those that take requests, or will."""
        return [worker for worker in self._workers.staying if self._given.rest_of(worker) is None]

    def _let_go_of_the_taken_away(self) -> None:
        """A worker at rest keeps its place as long as its process lives. Another of it would only take up a device."""
        resting = [worker for worker in self._workers.staying if self._given.rest_of(worker) is not None]
        self._at_rest = {worker: self._at_rest.get(worker, worker.owner) for worker in resting}
        for worker, owner in self._at_rest.items():
            if worker.owner != owner:
                logger.info("%s was drained and is gone", worker.device)
                self._workers.retire(worker)

    def _wanted(self) -> int:
        held = sum(self._given.held(worker) for worker in self._taking)
        # What waits although there is room waits for something else: its key's limit, a pause, another model.
        outstanding = held if self._given.has_room() else held + self._waiting()
        return min(max(math.ceil(outstanding / PER_WORKER), self._low), self._high)

    def _add(self) -> None:
        names = {worker.device for worker in self._workers}
        name = next(name for name in (f"ray:{index}" for index in count()) if name not in names)
        logger.info("starting %s", name)
        self._workers.add(name)

    def _is_time_to_shrink(self) -> bool:
        now = self._clock()
        if self._too_many_since is None:
            self._too_many_since = now
        return now - self._too_many_since >= SHRINK_AFTER_S

    def _shrink(self) -> None:
        """The one least missed: not ready yet, or with the least to do."""
        worker = min(self._taking, key=lambda worker: (worker.is_ready, self._given.held(worker)))
        logger.info("%s is needed no more", worker.device)
        self._too_many_since = None
        self._workers.retire(worker)
