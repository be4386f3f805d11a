"""Workers as child processes of the node, their frames over a socketpair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from models import host_memory
from server.workers.transport import READ_SIZE, Ending

logger = logging.getLogger("fluxserve.worker")

EXIT_BROKEN = 3
"""How a worker exits when its model, device or arguments are at fault, so that haste would not help."""


class ChildProcesses:
    """See Transport.

    Args: argv: the command line, given the descriptor of its end of the socket and its device.
    """

    def __init__(self, argv: Callable[[int, str], Sequence[str]], environment: Callable[[], Mapping[str, str]]) -> None:
        self._argv = argv
        self._environment = environment

    async def start(self, device: str, note: Callable[[str], object]) -> ChildProcess:
        """See Transport."""
        kills_before = host_memory.kills()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._argv(theirs.fileno(), device),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    env=self._environment(),
                    # A Ctrl-C at the terminal is for the node, which then lets its workers finish.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_SIZE * 4)
        return ChildProcess(process, reader, writer, device, kills_before)

    async def close(self) -> None:
        """See Transport."""


class ChildProcess:
    """See Process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        device: str,
        kills_before: int,
    ) -> None:
        self.pid = process.pid
        self.host = None
        self.reader = reader
        self.writer = writer
        self._process = process
        self._kills_before = kills_before
        self._lines = asyncio.create_task(_keep_lines(process, device))

    async def wait(self) -> None:
        """See Process."""
        await self._process.wait()

    def kill(self) -> None:
        """See Process."""
        # It leads its own group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """See Process."""
        self.kill()
        await self._process.wait()
        await asyncio.wait({self._lines}, timeout=1.0)
        self._lines.cancel()
        self.writer.close()

    def ending(self, reason: str) -> Ending:
        """See Process."""
        status = self._process.returncode
        if reason:
            return Ending(reason, is_broken=status == EXIT_BROKEN)
        if status == -signal.SIGKILL and host_memory.kills() > self._kills_before:
            return Ending(_out_of_memory(), is_out_of_memory=True)
        return exit_of(status)


def exit_of(status: int | None) -> Ending:
    """What an exit status says; below zero it is a signal."""
    if status is not None and status < 0:
        return Ending(f"killed by {signal.Signals(-status).name}")
    return Ending(f"exited with status {status}", status is not None, status == EXIT_BROKEN)


async def _keep_lines(process: asyncio.subprocess.Process, device: str) -> None:
    """Pass on what the process prints, for the operator's log."""
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        while line := await _read_line(process.stdout):
            text = line.decode(errors="replace").rstrip()
            logger.info("%s: %s", device, text)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:
        # A line longer than the stream's limit was dropped; say so rather than stop listening.
        return b"(a very long line)\n"


def _out_of_memory() -> str:
    return (
        f"killed by the kernel: the memory ran out ({host_memory.total() / 1e9:.1f} GB may be used here); "
        "raise the limit, or serve fewer or smaller models (fluxserve models)"
    )
