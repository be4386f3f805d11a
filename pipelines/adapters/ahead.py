"""Adapter files are read on a thread of their own: a gigabyte from a disk must not hold up the steps of others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, Generic, TypeVar

from models.accelerator import Launched
from models.adapters.reading import AdapterWeights, read_adapter
from models.registry import Family

T = TypeVar("T")

_KEPT = 8
"""Files read and not yet taken; beyond it the oldest is dropped: its request may be gone."""


class ReadAhead:
    """Files of one folder, read in order, each once for all that wait for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "adapters")
        self._begun: OrderedDict[tuple[str, Family], Future[AdapterWeights]] = OrderedDict()

    def begin(self, file: str, family: Family = "flux") -> Future[AdapterWeights]:
        """Start to read a file as a LoRA of a model family, unless that has begun."""
        found = self._begun.get((file, family))
        if found is None:
            found = self._begun[file, family] = self._thread.submit(read_adapter, self._folder / file, family)
            while len(self._begun) > _KEPT:
                self._begun.popitem(last=False)
        return found

    def take(self, file: str, family: Family = "flux") -> AdapterWeights:
        """What the file holds, kept here no longer. Raises: what reading raises."""
        reading = self.begin(file, family)
        try:
            return reading.result()
        finally:
            self._begun.pop((file, family), None)


class After(Generic[T]):
    """Work that is launched once others have ended, however they ended: a `Launched` of what it launches.

    Args: first: at least one. launch: called on the thread that asks, once.
    """

    def __init__(self, first: Sequence[Future[Any]], launch: Callable[[], Launched[T]]) -> None:
        self._first = first
        self._launch = launch
        self._launched: Launched[T] | None = None
        self._callbacks: list[Callable[[], object]] = []

    def is_done(self) -> bool:
        return all(future.done() for future in self._first) and self._started().is_done()

    def wait(self) -> None:
        wait_for(self._first)
        self._started().wait()

    def result(self) -> T:
        wait_for(self._first)
        return self._started().result()

    def notify(self, callback: Callable[[], object]) -> None:
        """Call back when it may go on, and when it is done, so that somebody asks."""
        self._callbacks.append(callback)
        for future in self._first:
            future.add_done_callback(lambda done: callback())

    def _started(self) -> Launched[T]:
        if self._launched is None:
            self._launched = self._launch()
            for callback in self._callbacks:
                self._launched.notify(callback)
        return self._launched
