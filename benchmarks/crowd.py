"""A crowd of clients in a process of its own: pollers that ask every 0.1 s, or status streams that listen.

    python -m benchmarks.crowd --port N --kind status|stream --clients N --seconds S

Reads "SLOT PATH" lines: what the clients of a slot ask about from then on. Starts with the first line for every slot,
says COUNTING once everybody is there, and prints one JSON line at the end. Its own lag is in it: what it did not manage
must not be blamed on the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import uvloop

from benchmarks.raw_http import Connection, EventStream, request
from server.bench.figures import spread

PAUSE_S = 0.1
"""Between an answer and the next question, as fal_client does."""
AGAIN_S = 0.05
"""Before a stream that has ended is opened anew, for what its slot asks about then."""
SLOTS = 4
COUNTING = "counting"


@dataclass
class Tally:
    """What the crowd saw, in milliseconds. `lag_ms`: how late this process was itself."""

    latency_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    errors: int = 0


class Poller:
    """One client that asks, waits for the answer, pauses and asks again."""

    def __init__(self, connection: Connection, path: Callable[[], bytes], tally: Tally) -> None:
        self._connection, self._path, self._tally = connection, path, tally
        self._loop = asyncio.get_running_loop()
        self._sent = 0.0

    def start(self, delay_s: float) -> None:
        # uvloop's own clock counts whole milliseconds.
        self._loop.call_later(delay_s, self._ask, time.perf_counter() + delay_s)

    def _ask(self, due: float) -> None:
        self._sent = time.perf_counter()
        self._tally.lag_ms.append((self._sent - due) * 1e3)
        self._connection.ask(self._path(), self._answered)

    def _answered(self, status: int, body: bytes) -> None:
        if status not in (200, 202):
            self._tally.errors += 1
            if status == 0:
                return
        self._tally.latency_ms.append((time.perf_counter() - self._sent) * 1e3)
        self.start(PAUSE_S)


class Listener:
    """One status stream after another; notes how old the newest log line is when it arrives."""

    def __init__(self, port: int, path: Callable[[], bytes], tally: Tally) -> None:
        self._port, self._path, self._tally = port, path, tally
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_first = True

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_first = True
        await loop.create_connection(lambda: EventStream(self._path(), self._event), "127.0.0.1", self._port)

    def _event(self, data: bytes | None) -> None:
        if data is None:
            asyncio.get_running_loop().call_later(AGAIN_S, self._reopen)
            return
        logs = json.loads(data).get("logs") or []
        was_first, self._is_first = self._is_first, False
        if logs and not was_first:  # the first tells of the past
            moment = datetime.fromisoformat(logs[-1]["timestamp"]).timestamp()
            self._tally.latency_ms.append((time.time() - moment) * 1e3)

    def _reopen(self) -> None:
        task = asyncio.ensure_future(self.open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def run(port: int, kind: str, clients: int, seconds: float) -> dict[str, object]:
    """The crowd's figures."""
    paths: dict[int, bytes] = {}
    known = asyncio.Event()
    tail = "/status" if kind == "status" else "/status/stream?logs=1"

    def take() -> None:
        data = os.read(sys.stdin.fileno(), 1 << 16)  # whole lines: each was written at once
        if not data:
            asyncio.get_running_loop().remove_reader(sys.stdin)
        for line in data.decode().splitlines():
            slot, path = line.split()
            paths[int(slot)] = request("GET", path + tail, f"127.0.0.1:{port}")
        if len(paths) == SLOTS:
            known.set()

    asyncio.get_running_loop().add_reader(sys.stdin, take)
    await known.wait()
    tally = Tally()
    for number in range(clients):
        path = partial(paths.__getitem__, number % SLOTS)
        if kind == "status":
            Poller(await Connection.open("127.0.0.1", port), path, tally).start(number % 100 * PAUSE_S / 100)
        else:
            await Listener(port, path, tally).open()
    # Everyone is there: only what comes from now on counts.
    await asyncio.sleep(1.0)
    tally.latency_ms.clear()
    tally.lag_ms.clear()
    print(COUNTING, flush=True)
    beats = asyncio.create_task(_feel_lag(tally))
    began, processor = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    beats.cancel()
    wall = time.perf_counter() - began
    return {
        "answers": len(tally.latency_ms),
        "answers_per_s": len(tally.latency_ms) / wall,
        "errors": tally.errors,
        "latency_ms": spread(tally.latency_ms) if tally.latency_ms else None,
        "own_lag_ms": spread(tally.lag_ms),
        "own_processor": (time.process_time() - processor) / wall,
    }


async def _feel_lag(tally: Tally) -> None:
    """How late a timer of this process is: streams have no moment at which they should have asked."""
    while True:
        due = time.perf_counter() + 0.01
        await asyncio.sleep(0.01)
        tally.lag_ms.append((time.perf_counter() - due) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=("status", "stream"), required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    figures = uvloop.run(run(arguments.port, arguments.kind, arguments.clients, arguments.seconds))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
