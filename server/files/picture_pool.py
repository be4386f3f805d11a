"""A few processes that encode and decode pictures, so that neither the event loop nor the GIL waits for Pillow."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, TypeVarTuple

from server.files.confinement import confine

MAX_PROCESSES = 4
TRIES = 3
LIMIT_S = 20.0
"""A call that runs longer than this has hung: the largest picture takes 2 s."""
START_S = 60.0
"""More for the first processes to start: beside work that keeps all cores busy, imports alone took over 20 s, and
a process that is killed for it starts no sooner the next time."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PicturePool:
    """Starts with the first call. A process that is killed, or hangs, costs its calls one retry.

    Args: limit_s: how long a call may run in its process. start_s: how long a process may take to start.
    """

    def __init__(self, limit_s: float = LIMIT_S, start_s: float = START_S) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._limit_s = limit_s
        self._start_s = start_s
        self._has_answered = False
        self._processes = min(MAX_PROCESSES, os.cpu_count() or 1)
        # As many calls as processes: a call that is handed over runs at once, so that its time can be limited.
        self._free = asyncio.Semaphore(self._processes)

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What `function` returns, called in a pool process: it and its arguments are pickled.

        Raises: what it raises; BrokenProcessPool when no process can be started, or TRIES were killed or hung.
        """
        for _ in range(TRIES - 1):
            try:
                return await self._run_once(function, *arguments)
            except BrokenProcessPool:
                pass
        return await self._run_once(function, *arguments)

    def close(self, wait: bool = False) -> None:
        """End the processes; what they are doing is dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=wait, cancel_futures=True)
            self._executor = None

    async def _run_once(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        async with self._free:
            executor = self._open()
            try:
                call = asyncio.wrap_future(executor.submit(function, *arguments))
            except OSError as exc:
                self._drop(executor)
                raise BrokenProcessPool(f"no process can be started: {exc.strerror}") from exc
            except BrokenProcessPool:
                self._drop(executor)
                raise
            limit_s = self._limit_s if self._has_answered else self._limit_s + self._start_s
            try:
                async with asyncio.timeout(limit_s):
                    result = await call
                self._has_answered = True
                return result
            except TimeoutError as exc:
                self._drop(executor)
                raise BrokenProcessPool(f"a process hung for {limit_s:g} s and was killed") from exc
            except BrokenProcessPool:
                self._drop(executor)
                raise

    def _open(self) -> ProcessPoolExecutor:
        """The executor, made if there is none. Raises: BrokenProcessPool."""
        if self._executor is None:
            self._has_answered = False
            try:
                # spawn, not fork: this process has threads, and its children must not inherit its sockets and locks.
                self._executor = ProcessPoolExecutor(
                    max_workers=self._processes,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=confine,
                )
            except OSError as exc:
                raise BrokenProcessPool(_no_semaphore(exc)) from exc
        return self._executor

    def _drop(self, executor: ProcessPoolExecutor) -> None:
        """Kill what is left of a broken executor and forget it, unless somebody else already has."""
        if self._executor is executor:
            self._executor = None
            # Its own `shutdown` waits for a process that hangs; `kill_workers` comes with Python 3.14.
            for process in list((executor._processes or {}).values()):
                process.kill()
            executor.shutdown(wait=False)


def why_unusable() -> str | None:
    """What keeps this machine from starting pool processes, in one sentence; None if nothing does. Takes no time."""
    try:
        # Nothing forks: this context removes its semaphore at once, and needs no process to watch over it.
        multiprocessing.get_context("fork").Lock()
    except OSError as exc:
        return _no_semaphore(exc)
    return None


def _no_semaphore(exc: OSError) -> str:
    return f"no semaphore can be made for the processes that encode pictures ({exc.strerror}): look at /dev/shm"
