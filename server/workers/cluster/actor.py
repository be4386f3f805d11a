"""What Ray places on a machine: it starts the usual worker there and carries its frames to the node and back.

The worker stays a child process of its own, so that it can be killed whatever it does, and its end is seen. The node
holds the other end of the connection: when that closes, worker and actor end; so nothing is left of a node that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass

from server.workers.cluster.keepalive import notice_a_silent_peer
from server.workers.process import WorkerOptions
from server.workers.transport import READ_SIZE

CONNECT_S = 10.0
LOOK_S = 0.5
LAST_WORDS_S = 5.0
"""How long an actor whose worker has ended waits for somebody to ask how."""


@dataclass(frozen=True, slots=True)
class Task:
    """One worker to be started, and where its frames go.

    Args:
        host, port: where the node listens.
        ca: the authority (PEM) that signed the node's certificate.
        token: admits this one connection.
        module: a worker as `python -m`.
        arguments: its command line besides the descriptor of its socket.
    """

    host: str
    port: int
    ca: str
    token: str
    module: str
    arguments: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended. Args: status: of the worker's process, below zero a signal; None: there was none. how: then
    the reason."""

    status: int | None
    how: str = ""


class WorkerActor:
    """One worker, from the start of this actor to its end. Args: task: fields of a Task."""

    def __init__(self, task: dict[str, object]) -> None:
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        # Not a call of its own: one that its sender did not live to make would leave an actor that holds a GPU idle.
        threading.Thread(target=_end_with, args=(os.getppid(),), name="raylet", daemon=True).start()
        threading.Thread(target=self._run, args=(Task(**task),), name="worker", daemon=True).start()  # type: ignore[arg-type]

    def outcome(self) -> tuple[int | None, str]:
        """Waits for the end; fields of an Outcome."""
        self._ended.wait()
        assert self._outcome is not None
        return self._outcome.status, self._outcome.how

    def _run(self, task: Task) -> None:
        try:
            self._outcome = Outcome(asyncio.run(carry(task)))
        except Exception as exc:  # whatever it is, somebody waits for a sentence about it
            self._outcome = Outcome(None, f"{socket.gethostname()}: {exc or type(exc).__name__}")
        self._ended.set()
        time.sleep(LAST_WORDS_S)
        os._exit(0)


def _end_with(raylet: int) -> None:
    """Ray lets an actor that is in a call live on without its raylet; the next raylet of this machine would give the
    same GPU away again."""
    while os.getppid() == raylet:
        time.sleep(LOOK_S)
    os._exit(1)


async def carry(task: Task) -> int:
    """Start the worker and carry its frames until it or the node is gone. Returns its exit status.

    Raises: OSError (ssl.SSLError) when the node cannot be reached or is not the one that sent the task.
    """
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                task.host, task.port, ssl=ssl.create_default_context(cadata=task.ca), limit=READ_SIZE
            )
    except TimeoutError as exc:
        raise OSError(f"the node at {task.host}:{task.port} does not answer") from exc
    notice_a_silent_peer(writer)
    process, from_worker, to_worker = await _start(task)
    try:
        hello = {"token": task.token, "pid": process.pid, "host": socket.gethostname()}
        writer.write(json.dumps(hello).encode() + b"\n")
        down = asyncio.create_task(_pump(from_worker, writer))
        up = asyncio.create_task(_pump(reader, to_worker))
        exit_ = asyncio.create_task(process.wait())
        await asyncio.wait({down, up, exit_}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            # What it sent before it ended still counts, and it may be about to end with a status worth knowing.
            await asyncio.wait({down, exit_}, timeout=1.0)
        up.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        to_worker.close()
        writer.close()
        status = await process.wait()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 1.0)
    return status


async def _start(task: Task) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", task.module, "--fd", str(theirs.fileno()), *task.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=WorkerOptions(()).environment(),
            start_new_session=True,
        )
    return process, *await asyncio.open_unix_connection(sock=ours, limit=READ_SIZE)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(READ_SIZE):
            sink.write(data)
            await sink.drain()
