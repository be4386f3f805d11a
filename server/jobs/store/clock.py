"""Time that only passes: a correction of the machine's clock must not end leases, files or waits."""

from __future__ import annotations

import time


class SteadyClock:
    """Unix seconds as they were at the start, and what has passed since; the wall clock may jump meanwhile."""

    def __init__(self) -> None:
        self._at_start = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._at_start + time.monotonic()
