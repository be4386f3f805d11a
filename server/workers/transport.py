"""What a worker needs of whatever starts its processes and carries their frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Args:
        how: in words.
        is_exit: it ended by itself, so that what it complained of last explains it.
        is_broken: its model, device or arguments are at fault: another would end in the same way.
        is_out_of_memory: the system killed it for its memory.
    """

    how: str
    is_exit: bool = False
    is_broken: bool = False
    is_out_of_memory: bool = False


class Process(Protocol):
    """One process of a worker, from its start to its end."""

    @property
    def pid(self) -> int | None:
        """On the machine where it runs."""

    @property
    def host(self) -> str | None:
        """That machine's name; None for ours."""

    @property
    def reader(self) -> asyncio.StreamReader:
        """Its frames; the end of them when it has ended, however it did."""

    @property
    def writer(self) -> asyncio.StreamWriter:
        """Frames to it."""

    async def wait(self) -> None:
        """Until it has ended; at the latest some time after `kill`."""

    def kill(self) -> None:
        """End it and whatever it started. Idempotent."""

    async def close(self) -> None:
        """Kill it, wait for it, and let go of everything that belongs to it."""

    def ending(self, reason: str) -> Ending:
        """After `close`. Args: reason: why it was killed, if it was."""


class Transport(Protocol):
    """Starts processes of workers, one kind of place a transport."""

    async def start(self, device: str, note: Callable[[str], object]) -> Process:
        """A process that has just begun. Cancelled, it leaves nothing.

        Args: note: told what this waits for, where it may take long.
        Raises: OSError with a sentence."""

    async def close(self) -> None:
        """After the last process: let go of what outlives them."""
