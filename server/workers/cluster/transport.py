"""Workers on the machines of a Ray cluster: Ray finds the place, the frames take a connection of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from server.workers.child import exit_of
from server.workers.cluster.actor import Outcome, Task
from server.workers.cluster.connection import address_towards, gpus_each
from server.workers.cluster.door import Door, Visit
from server.workers.cluster.placing import Placing
from server.workers.process import WorkerOptions
from server.workers.transport import Ending

LAST_BYTES_S, LAST_BYTES_LOOKS = 2.0, 100
"""How long bytes may be under way from a worker whose end is known already."""


class ClusterWorkers:
    """See Transport.

    Args:
        address: what ray.init takes: `auto`, HOST:PORT or ray://HOST:PORT.
        cpus: that each worker asks for, besides one GPU where the cluster has any.
        device: `auto`, or the kind that each worker is to have: `cuda` or `cpu`.
        host, port: where workers connect; None finds the address that the cluster's machines see.
    """

    def __init__(
        self,
        address: str,
        options: WorkerOptions,
        device: str = "auto",
        cpus: float = 1.0,
        host: str | None = None,
        port: int = 0,
    ) -> None:
        self._options = options
        self._device = device
        self._cpus = cpus
        self._host = host
        self._port = port
        self._gpus = 0
        self._door: Door | None = None
        self._opening = asyncio.Lock()
        self._addresses: list[str] = []
        self._running: asyncio.Task[None] | None = None
        self.placing = Placing(address, self._connected)

    async def start(self, device: str, note: Callable[[str], object]) -> PlacedProcess:
        """See Transport."""
        if self._running is None:
            self._running = asyncio.create_task(self.placing.run(), name="placing")
        if not self.placing.is_connected.is_set():
            note(self.placing.problem or f"connects to Ray at {self.placing.address}")
            await self.placing.is_connected.wait()
        door = await self._open_door()
        gpus = gpus_each(self._device, self._gpus)
        note(f"waits for a place in the cluster: {gpus} GPU, {self._cpus:g} CPU")
        token, visit = door.expect()
        key, outcome = self.placing.place(self._task(door, token, gpus), gpus, self._cpus)
        try:
            either: set[asyncio.Future[Any]] = {visit, outcome}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not visit.done():
                raise OSError(_why(outcome.result()))
        except BaseException:
            door.send_away(visit)
            self.placing.remove(key)
            raise
        return PlacedProcess(visit.result(), outcome, lambda: self.placing.remove(key))

    async def close(self) -> None:
        """See Transport."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._door is not None:
            self._door.close()

    def _task(self, door: Door, token: str, gpus: int) -> Task:
        module = self._options.command[-1]
        return Task(door.host, door.port, door.ca, token, module, self._options.arguments("cuda" if gpus else "cpu"))

    def _connected(self, found: dict[str, Any]) -> None:
        self._gpus, self._addresses = found["gpus"], found["addresses"]

    async def _open_door(self) -> Door:
        async with self._opening:
            if self._door is None:
                door = Door(self._host or address_towards(self._addresses), self._port)
                await door.open()
                self._door = door
        return self._door


class PlacedProcess:
    """See Process. The connection tells whether it lives; Ray only adds how it ended, if it still knows."""

    def __init__(self, visit: Visit, outcome: asyncio.Future[Outcome], remove: Callable[[], object]) -> None:
        self.pid = visit.pid
        self.host = visit.host
        self.reader = visit.reader
        self.writer = visit.writer
        self._outcome = outcome
        self._remove = remove
        self._is_killed = False
        self._gone = asyncio.Event()
        outcome.add_done_callback(self._note)

    def _note(self, outcome: asyncio.Future[Outcome]) -> None:
        # Without a status it is only what Ray believes; a head that was lost believes nothing of what runs.
        if not outcome.cancelled() and outcome.result().status is not None:
            self._gone.set()

    async def wait(self) -> None:
        """See Process."""
        await self._gone.wait()
        # It closes its connection last: what it sent before is still to be read.
        for _ in range(LAST_BYTES_LOOKS):
            if self.reader.at_eof() or self._is_killed:
                break
            await asyncio.sleep(LAST_BYTES_S / LAST_BYTES_LOOKS)

    def kill(self) -> None:
        """See Process: its end of the connection sees this one closed, and kills it."""
        self._is_killed = True
        self.writer.close()
        self._gone.set()

    async def close(self) -> None:
        """See Process."""
        self.kill()
        self._remove()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), 1.0)

    def ending(self, reason: str) -> Ending:
        """See Process."""
        if reason:
            return Ending(reason)
        if not self._outcome.done() or self._outcome.cancelled():
            return Ending(f"the connection to {self.host} was lost")
        outcome = self._outcome.result()
        return exit_of(outcome.status) if outcome.status is not None else Ending(outcome.how)


def _why(outcome: Outcome) -> str:
    if outcome.status is not None:
        return f"the worker exited with status {outcome.status} before it could connect"
    return outcome.how
