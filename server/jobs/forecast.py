"""How long a request that is submitted now will wait, told by how fast the line has moved lately."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from server.jobs.store.fair import work_of
from server.jobs.store.job import NewJob

WINDOW = 32
"""Starts that the pace is taken from."""
ENOUGH = 8
"""Starts in one stretch of waiting before which the pace is not known, and after which a faster one is believed."""
STALE_S = 600.0
"""Without a start for so long, those before say nothing any more."""
MEMORY = 0.1
"""Weight of the newest request in what a megapixel step of its model takes."""
MAX_RETRY_S = 3600


class LateError(Exception):
    """The request's own limit cannot be kept. Args: retry_after_s: when one like it may be taken."""

    def __init__(self, limit_s: float, retry_after_s: float) -> None:
        super().__init__(
            f"So many requests of this key wait that this one would not start within {limit_s:.3g} s, its own limit"
        )
        self.retry_after_s = min(MAX_RETRY_S, max(1, math.ceil(retry_after_s)))


class Forecast:
    """Learns from starts and ends; safe to use from any thread.

    Pessimistic about nothing: what it says is the least that a request will wait, since others may go before it.

    Args: clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._starts: deque[tuple[float, str]] = deque(maxlen=WINDOW)
        """When, and whose."""
        self._step_s: dict[str, float] = {}

    def note_start(self, waiting: int, tenant: str) -> None:
        """A request has begun, at whatever node, and so many still wait."""
        with self._lock:
            if not waiting:
                self._starts.clear()  # from here on starts come as fast as requests do
            self._starts.append((self._clock(), tenant))

    def note_room(self) -> None:
        """There is room that nobody takes: whatever waits waits for something else, and a new request need not."""
        with self._lock:
            self._starts.clear()

    def note_end(self, params: Mapping[str, Any] | None, device_s: float) -> None:
        """A request has taken so much of a device."""
        if params is None:
            return
        model, step_s = params["model"], device_s / work_of(params)
        with self._lock:
            known = self._step_s.get(model, step_s)
            self._step_s[model] = known + MEMORY * (step_s - known)

    def pace_s(self) -> float | None:
        """Seconds between two starts while requests wait; None until it is known."""
        with self._lock:
            now, times = self._clock(), [at for at, _ in self._starts]
        if len(times) < ENOUGH or now - times[-1] >= STALE_S:
            return None
        # What was slow may be over: the latest starts count alone where they came faster than all that are known.
        return min(_pace_s(times, now), _pace_s(times[-ENOUGH:], now))

    def work_s(self, params: Mapping[str, Any]) -> float:
        """What a request takes of a device, 0 while that is not known."""
        with self._lock:
            return self._step_s.get(params["model"], 0.0) * work_of(params)

    def most_waiting(self, new: NewJob, waiting: int) -> int | None:
        """So many of its own tenant's requests waiting are too many for its own limits; None: any number may wait.

        Others' requests do not count: turns go round, and nobody is refused for somebody else's flood. While none of
        its own waits, it is tried in any case.

        Args: waiting: requests of all.
        """
        limit_s, pace_s = self._limit_s(new), self.pace_s() if waiting else None
        return None if limit_s is None or not pace_s else 1 + math.floor(limit_s / pace_s)

    def late(self, new: NewJob) -> LateError:
        """What its caller is told: one of its own has to start before there is room for another."""
        return LateError(self._limit_s(new) or 0.0, self._own_pace_s(new.tenant))

    def _own_pace_s(self, tenant: str) -> float:
        """Seconds between two starts of one tenant while turns go round; of anybody where it has had none."""
        with self._lock:
            count, own = len(self._starts), sum(whose == tenant for _, whose in self._starts)
        return (self.pace_s() or 0.0) * (count / own if own else 1.0)

    def _limit_s(self, new: NewJob) -> float | None:
        """Seconds that it may wait before it starts, by the tighter of its own limits; None without one."""
        limits = [] if new.start_within_s is None else [new.start_within_s]
        done_within_s = new.output.get("done_within_s")
        if done_within_s is not None and new.params is not None:
            limits.append(max(0.0, done_within_s - self.work_s(new.params)))
        return min(limits, default=None)


def _pace_s(times: Sequence[float], now: float) -> float:
    # The second is what a line that has come to a stand shows.
    return max((times[-1] - times[0]) / (len(times) - 1), (now - times[0]) / len(times))
