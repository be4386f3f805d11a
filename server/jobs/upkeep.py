"""What a node does beside requests: sweeps expired jobs and files, probes where they are kept, forgets ended jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from server.files.disk import Disk
from server.files.objects import Objects, ObjectsAwayError
from server.files.outputs import EncoderError, Outputs
from server.jobs.live import LiveJobs
from server.jobs.room import make_room
from server.jobs.store.base import Store
from server.jobs.store.errors import StoreError

logger = logging.getLogger("fluxserve.node")

SWEEP_S = 3600.0
DOUBT_S = 86400.0
"""After a rest longer than this a start sweeps only when it has lasted as long: a wrong clock is corrected before."""
ROOM_S = 60.0
FORGET_S = 10.0
PROBE_S = 1.0


@dataclass
class Upkeep:
    """Background tasks of one node, from `start` to `stop`.

    Args: retention_s: how long ended jobs stay in the store. first_ready: set when a worker has loaded its models.
        keep_bytes: of results and uploads; beyond it the oldest go earlier. None for any number.
    """

    store: Store
    objects: Objects
    outputs: Outputs
    live: LiveJobs
    disk: Disk
    retention_s: float
    first_ready: asyncio.Event
    keep_bytes: int | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begin; needs a running event loop."""
        work = {
            "sweep": self._sweep(),
            "room": self._keep_within(),
            "forget": self._forget_ended(),
            "disk": self._probe(self.disk.probe),
            "objects": self._probe(self.objects.probe),
            "encoder": self._keep_encoder(),
        }
        self._tasks = [asyncio.create_task(task, name=name) for name, task in work.items()]

    async def probe(self) -> None:
        """Look whether the data folder takes writes, and the place of pictures; one that is slow to answer is told of
        later."""
        await asyncio.to_thread(self.disk.probe)
        await asyncio.wait({asyncio.create_task(asyncio.to_thread(self.objects.probe))}, timeout=PROBE_S)

    async def stop(self) -> None:
        """Cancel every task and wait for its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_encoder(self) -> None:
        """Start an encoder before the first picture needs it, and find out when one can be had again.

        Not before a worker has used the cores to load."""
        await self.first_ready.wait()
        while True:
            if not self.outputs.is_warm:
                with suppress(EncoderError):
                    await self.outputs.warm()
            await asyncio.sleep(PROBE_S)

    async def _sweep(self) -> None:
        """Hourly: drop what is past its retention, in the store and on the disk."""
        if await self._doubts_the_clock():
            await asyncio.sleep(DOUBT_S)
        while True:
            try:
                rows = await asyncio.to_thread(self.store.sweep, self.retention_s)
                files = await asyncio.to_thread(self.objects.sweep)
                logger.info("swept %d requests and %d files", len(rows), files)
            except (StoreError, ObjectsAwayError) as exc:  # what is away says so itself
                logger.warning("the sweep failed, and will be tried again: %s", exc)
            except Exception:
                logger.exception("the sweep failed; it will be tried again")
            await asyncio.sleep(SWEEP_S)

    async def _keep_within(self) -> None:
        """Once a minute: let the oldest go, as far as more bytes are kept than there may be."""
        while self.keep_bytes is not None:
            await asyncio.sleep(ROOM_S)
            try:
                if self.objects.total_bytes > self.keep_bytes:
                    gone = await asyncio.to_thread(make_room, self.store, self.objects, self.keep_bytes)
                    logger.info("to keep within %d bytes %d requests and %d files went", self.keep_bytes, *gone)
            except Exception:
                logger.exception("no room could be made; it will be tried again")

    async def _doubts_the_clock(self) -> bool:
        """Whether nobody has asked for anything for long: a long rest, or a clock that is ahead, not yet set."""
        try:
            newest = await asyncio.to_thread(self.store.newest_at)
            gap_s = 0.0 if newest is None else self.store.now() - newest
        except Exception:
            logger.exception("when the last request came cannot be told: nothing is swept for a day")
            return True
        if gap_s > DOUBT_S:
            logger.warning("the clock is %.0f days past the last request: nothing is swept for a day", gap_s / 86400)
        return gap_s > DOUBT_S

    async def _probe(self, probe: Callable[[], None]) -> None:
        """Find out that nothing can be stored before a request does, and that it can again."""
        while True:
            try:
                await asyncio.to_thread(probe)
            except Exception:
                logger.exception("a look at whether files are taken failed; it will be made again")
            await asyncio.sleep(PROBE_S)

    async def _forget_ended(self) -> None:
        """Keep the live state small: a busy node ends tens of jobs a second, each with a log."""
        while True:
            await asyncio.sleep(FORGET_S)
            self.live.forget_old()
