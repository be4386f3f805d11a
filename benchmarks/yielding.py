"""What a submit takes while a worker on a CPU holds every core, and what it costs to let the worker yield.

    python -m benchmarks.yielding [--side 256] [--steps 8] [--ways plain batch nice] [--rounds 6]

One real server. Clients keep the worker busy; another submits every 150 ms, which is what is timed. The ways take
turns of a few seconds each on the same running worker, round after round, since other programs on the machine change
from minute to minute: compare the ratios. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks.load import body
from benchmarks.raw_http import Connection, request
from server.bench.figures import percentile
from server.bench.report import table
from server.bench.stamp import stamp
from tests.acceptance.serving import Server

PAUSE_S = 0.15
SETTLE_S = 0.5
"""After a change, before anything counts."""
QUICK = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}


def _reniced(policy: int, nice: int) -> Callable[[int], None]:
    def apply(thread: int) -> None:
        os.sched_setscheduler(thread, policy, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, thread, nice)

    return apply


WAYS = {
    "plain": _reniced(os.SCHED_OTHER, 0),
    "batch": _reniced(os.SCHED_BATCH, 0),
    "nice 2": _reniced(os.SCHED_OTHER, 2),
    "nice 5": _reniced(os.SCHED_OTHER, 5),
    "nice 10": _reniced(os.SCHED_OTHER, 10),
    "nice 19": _reniced(os.SCHED_OTHER, 19),
    "batch, nice 5": _reniced(os.SCHED_BATCH, 5),
    "batch, nice 10": _reniced(os.SCHED_BATCH, 10),
    "idle": _reniced(os.SCHED_IDLE, 0),
}


@dataclass
class Turns:
    """What one way has shown so far."""

    pictures: int = 0
    seconds: float = 0.0
    submits_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "pictures_per_s": self.pictures / self.seconds,
            "submit_p50_ms": median(self.submits_ms),
            "submit_p95_ms": percentile(self.submits_ms, 0.95),
        }


class Load:
    """Clients that always wait for a picture, and one that submits now and then."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._host = f"127.0.0.1:{port}"
        self.turn = Turns()

    async def draw(self, wish: dict[str, Any], seed: int) -> None:
        """One picture after another, until cancelled."""
        connection = await Connection.open("127.0.0.1", self._port)
        while True:
            data = request("POST", "/run/fal-ai/flux/dev", self._host, body(wish | {"seed": seed}))
            status, answer, _ = await connection.fetch(data)
            assert status == 200, (status, answer[:200])
            self.turn.pictures += 1

    async def submit(self) -> None:
        """A small request every PAUSE_S, until cancelled."""
        connection = await Connection.open("127.0.0.1", self._port)
        while True:
            data = request("POST", "/queue/fal-ai/flux/dev", self._host, body(QUICK))
            status, answer, took = await connection.fetch(data)
            assert status == 200, (status, answer[:200])
            self.turn.submits_ms.append(took * 1e3)
            await asyncio.sleep(PAUSE_S)


async def measure(server: Server, arguments: argparse.Namespace) -> dict[str, Turns]:
    load, worker = Load(server.port), server.worker_pids()[0]
    wish = {"prompt": "a red circle", "num_inference_steps": arguments.steps}
    wish["image_size"] = {"width": arguments.side, "height": arguments.side}
    turns = {way: Turns() for way in arguments.ways}
    tasks = [asyncio.create_task(load.draw(wish, seed)) for seed in range(arguments.clients)]
    tasks.append(asyncio.create_task(load.submit()))
    try:
        await asyncio.sleep(3.0)
        for number in range(arguments.rounds):
            for way in arguments.ways if number % 2 == 0 else reversed(arguments.ways):
                await _turn(load, worker, way, turns[way], arguments.seconds)
                for task in tasks:
                    if task.done():
                        task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return turns


async def _turn(load: Load, worker: int, way: str, turns: Turns, seconds: float) -> None:
    load.turn = Turns()
    for thread in os.listdir(f"/proc/{worker}/task"):
        WAYS[way](int(thread))
    await asyncio.sleep(SETTLE_S)
    load.turn = turns
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    turns.seconds += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8, help="pictures that are always wanted")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every turn")
    parser.add_argument("--out", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "node", model="flux-shapes").start()
        try:
            server.wait_ready()
            turns = uvloop.run(measure(server, arguments))
        finally:
            server.close()
    figures = {way: turn.figures() for way, turn in turns.items()}
    first = next(iter(figures.values()))["pictures_per_s"]
    rows = [
        {
            "worker": way,
            "pictures/s": f"{each['pictures_per_s']:.2f}",
            "of the first": f"{each['pictures_per_s'] / first:.2f}",
            "submit p50, ms": f"{each['submit_p50_ms']:.1f}",
            "p95": f"{each['submit_p95_ms']:.1f}",
        }
        for way, each in figures.items()
    ]
    print(table(rows))
    report = {"benchmark": "yielding", "side": arguments.side, "steps": arguments.steps, "environment": stamp()}
    report |= {"ways": figures}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
