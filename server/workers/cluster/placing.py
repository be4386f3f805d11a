"""The node's side of the placer: its process, started again when it ends, and what was asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

from server.workers.cluster.actor import Outcome, Task
from server.workers.cluster.address import unreachable

logger = logging.getLogger("fluxserve.cluster")

COMMAND = (sys.executable, "-m", "server.workers.cluster.placer")
MAX_PAUSE_S = 10.0
GOODBYE_S = 2.0
"""How long the placer may take to have what waits for a place forgotten."""
MAX_LINE = 1 << 22


class Placing:
    """Asks Ray for workers. Args: address: what ray.init takes. connected: told what the cluster has."""

    def __init__(
        self, address: str, connected: Callable[[dict[str, Any]], object], command: Sequence[str] = COMMAND
    ) -> None:
        self.address = address
        self.is_connected = asyncio.Event()
        self.problem: str | None = None
        self._tell = connected
        self._command = command
        self._writer: asyncio.StreamWriter | None = None
        self._keys = count()
        self._asked: dict[str, asyncio.Future[Outcome]] = {}

    async def run(self) -> None:
        """Keep a placer alive until cancelled."""
        pause_s = 0.5
        while True:
            try:
                was_connected = await self._live_once()
            except OSError as exc:
                was_connected, self.problem = False, f"no process for Ray can be started: {exc}"
                logger.warning("%s", self.problem)
            pause_s = 0.5 if was_connected else min(pause_s * 2, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    def place(self, task: Task, gpus: int, cpus: float) -> tuple[str, asyncio.Future[Outcome]]:
        """Ask for a worker; what is returned tells of its end, or that there is nobody left who would know."""
        key = str(next(self._keys))
        outcome = self._asked[key] = asyncio.get_running_loop().create_future()
        self._send({"place": key, "task": asdict(task), "gpus": gpus, "cpus": cpus})
        return key, outcome

    def remove(self, key: str) -> None:
        """Whatever has become of it, it is wanted no more."""
        if self._asked.pop(key, None) is not None:
            self._send({"remove": key})

    async def _live_once(self) -> bool:
        """One placer from start to end; whether it reached the cluster."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(*self._command, "--fd", str(theirs.fileno()), "--address", self.address),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        printed = asyncio.create_task(_keep_lines(process))
        was_connected = False
        try:
            with contextlib.suppress(OSError):
                while line := await reader.readline():
                    self._take(json.loads(line))
                    was_connected = was_connected or self.is_connected.is_set()
        finally:
            self._writer.close()
            self._writer = None
            self.is_connected.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GOODBYE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            printed.cancel()
            if was_connected:
                logger.warning("the connection to Ray was lost; workers that run go on")
            self._give_up(self.problem or f"the connection to Ray at {self.address} was lost")
        return was_connected

    def _take(self, message: dict[str, Any]) -> None:
        if "connected" in message:
            logger.info("connected to Ray at %s: %d GPUs", self.address, message["connected"]["gpus"])
            self.problem = None
            self._tell(message["connected"])
            self.is_connected.set()
        elif "refused" in message:
            self.problem = f"Ray at {self.address} is not used: {message['refused']}"
            logger.warning("%s", self.problem)
        elif "failed" in message:
            self.problem = unreachable(self.address, message["failed"])
            logger.warning("%s", self.problem)
        elif (outcome := self._asked.pop(message["ended"], None)) is not None and not outcome.done():
            outcome.set_result(Outcome(message["status"], message["how"]))

    def _give_up(self, why: str) -> None:
        asked, self._asked = self._asked, {}
        for outcome in asked.values():
            if not outcome.done():
                outcome.set_result(Outcome(None, why))

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")


async def _keep_lines(process: asyncio.subprocess.Process) -> None:
    """What Ray prints, and what workers print: Ray brings it here."""
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        while line := await process.stdout.readline():
            logger.info("%s", line.decode(errors="replace").rstrip())
