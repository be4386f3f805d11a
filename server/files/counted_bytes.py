"""How many bytes are kept below each folder of a bucket that others fill, too: counted anew now and then, beside."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Thread

logger = logging.getLogger("fluxserve.objects")

FRESH_S = 60.0
"""What other nodes store shows after so long."""
SHARE = 0.05
"""Of the time at most goes into counting one folder: what takes long is counted more rarely."""


@dataclass
class _Count:
    """Args: since: what this node has changed since a count began."""

    known: int = 0
    since: int = 0
    fresh_until: float = 0.0
    is_counting: bool = False


class CountedBytes:
    """Any thread; nobody waits for a count. Args: count: looks at a folder, and takes its time."""

    def __init__(self, count: Callable[[str], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = count
        self._clock = clock
        self._lock = Lock()
        self._counts: dict[str, _Count] = {}
        self._due: deque[str] = deque()
        self._is_at_work = False

    def of(self, folder: str) -> int:
        """Bytes below it; too few until the first count has ended."""
        with self._lock:
            count = self._counts.setdefault(folder, _Count())
            if not count.is_counting and self._clock() >= count.fresh_until:
                self._due.append(folder)
                count.is_counting = True
                self._begin()
            return max(0, count.known + count.since)

    def add(self, folders: tuple[str, ...], size: int) -> None:
        """A file came to these, or with a negative size went."""
        with self._lock:
            for folder in folders:
                if (count := self._counts.get(folder)) is not None:
                    count.since += size

    def _begin(self) -> None:
        """One thread counts one folder after the other, however many are asked about. Under the lock."""
        if not self._is_at_work:
            # A daemon: a service that does not answer must not hold up the end of the process.
            Thread(target=self._count_what_is_due, name="objects-count", daemon=True).start()
            self._is_at_work = True

    def _count_what_is_due(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._is_at_work = False
                    return
                folder = self._due.popleft()
                count = self._counts[folder]
            self._count_anew(folder, count)

    def _count_anew(self, folder: str, count: _Count) -> None:
        began = self._clock()
        with self._lock:
            # Known now and seen by the count, if it is there already: better a little twice than not at all.
            count.known, count.since = count.known + count.since, 0
        try:
            known = self._look(folder)
        except Exception as exc:  # the next folder is counted all the same
            logger.warning("stored bytes are not counted: %s", exc)
            known = count.known
        now = self._clock()
        with self._lock:
            count.known, count.is_counting = known, False
            count.fresh_until = now + max(FRESH_S, (now - began) / SHARE)
