"""When a worker frees its device: after so many idle seconds, or because it was told to sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Pool(Protocol):
    """What of a ModelPool is needed here."""

    @property
    def loaded(self) -> list[str]: ...

    def unload(self) -> None: ...

    def load_all(self) -> None: ...


class Idle:
    """Looks at the pool between two steps.

    Args: unload_after_s: idle seconds after which the device is freed until the next request; None keeps it.
        say: tells the operator.
    """

    def __init__(
        self,
        pool: Pool,
        unload_after_s: float | None,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._unload_after_s = unload_after_s
        self._say = say
        self._clock = clock
        self._last_work = clock()
        self._is_asleep = False

    def sleep(self) -> None:
        """Free the device as soon as nothing is under way."""
        self._is_asleep = True

    def wake(self) -> None:
        """Load again what was given."""
        self._is_asleep = False
        self._pool.load_all()
        self._last_work = self._clock()

    def look(self, is_busy: bool) -> None:
        """Free the device if it is time to. Args: is_busy: whether anything is under way, or has just been."""
        now = self._clock()
        if is_busy:
            self._last_work = now
        elif not self._pool.loaded:
            return
        elif self._is_asleep:
            self._free("asleep: the device is free until `fluxserve workers wake`")
        elif self._unload_after_s is not None and now - self._last_work >= self._unload_after_s:
            self._free(f"idle for {self._unload_after_s:g} s: the device is free until the next request")

    def _free(self, why: str) -> None:
        self._pool.unload()
        self._say(why)
