"""A few processes that encode and decode pictures, so that neither the event loop nor the GIL waits for Pillow."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, TypeVarTuple

from server.files.encoding import end_with_parent

MAX_PROCESSES = 4
TRIES = 3

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PicturePool:
    """Starts with the first call. A process that is killed costs its calls one retry."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What `function` returns, called in a pool process: it and its arguments are pickled.

        Raises: what it raises; BrokenProcessPool when it has killed TRIES processes.
        """
        loop = asyncio.get_running_loop()
        for _ in range(TRIES - 1):
            executor = self._open()
            try:
                return await loop.run_in_executor(executor, function, *arguments)
            except BrokenProcessPool:
                self._drop(executor)
        return await loop.run_in_executor(self._open(), function, *arguments)

    def close(self, wait: bool = False) -> None:
        """End the processes; what they are doing is dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=wait, cancel_futures=True)
            self._executor = None

    def _open(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # spawn, not fork: this process has threads, and its children must not inherit its sockets and locks.
            self._executor = ProcessPoolExecutor(
                max_workers=min(MAX_PROCESSES, os.cpu_count() or 1),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=end_with_parent,
            )
        return self._executor

    def _drop(self, executor: ProcessPoolExecutor) -> None:
        """Forget a broken executor, unless somebody else already has."""
        if self._executor is executor:
            self._executor = None
            executor.shutdown(wait=False)
