"""What a worker placed by Ray costs a request, beside a child process and beside frames sent as Ray calls; and how soon
the end of an actor and of a machine is noticed.

    python -m benchmarks.cluster [--requests N] [--machine-deaths N]

A real Ray cluster on this machine, the fake engine at 20 ms a step, 1024 x 1024, the ways in turn. One JSON line last.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import psutil

from benchmarks.ray_machines import RayMachines, ray_machines
from models.arguments import resolve
from pipelines.protocol.frames import Finished, Frame, Picture, Progress, Submit, encode
from pipelines.protocol.params import GenerationParams
from server.bench.stamp import stamp
from server.workers.cluster.transport import ClusterWorkers
from server.workers.process import FAKE_COMMAND, Worker, WorkerOptions, Workers

MODEL, STEPS, STEP_S, SIDE = "fake:step_ms=20", 28, 0.02, 1024


class Way:
    """Workers of one kind, and when what they say arrives."""

    def __init__(self, name: str, devices: list[str], cluster: str | None = None) -> None:
        options = WorkerOptions((MODEL,), command=FAKE_COMMAND)
        self.name = name
        self.workers = Workers(name, devices, options, self, ClusterWorkers(cluster, options) if cluster else None)
        self.frames: list[tuple[float, Frame]] = []
        self.deaths: list[float] = []

    def on_frame(self, worker: Worker, frame: Frame) -> None:
        """See WorkerEvents."""
        self.frames.append((time.perf_counter(), frame))

    def on_death(self, worker: Worker, owner: str) -> None:
        """See WorkerEvents."""
        self.deaths.append(time.perf_counter())

    async def until_ready(self) -> None:
        await until(lambda: bool(list(self.workers)) and all(worker.is_ready for worker in self.workers))

    async def request(self, number: int) -> tuple[float, list[float]]:
        """Milliseconds from its submit to its last frame, and between its steps."""
        self.frames.clear()
        params = GenerationParams(resolve(MODEL).name, "a fox", SIDE, SIDE, STEPS, 3.5, seed=1)
        started = time.perf_counter()
        next(iter(self.workers)).send(Submit(f"{self.name}-{number}", 1, params.to_dict()))
        await until(lambda: any(isinstance(frame, Finished) for _, frame in self.frames))
        steps = [at for at, frame in self.frames if isinstance(frame, Progress)]
        assert len(steps) == STEPS
        assert sum(len(frame.pixels) for _, frame in self.frames if isinstance(frame, Picture)) == SIDE * SIDE * 3
        (ended,) = [at for at, frame in self.frames if isinstance(frame, Finished)]
        return (ended - started) * 1e3, gaps(steps)


class FramesAsCalls:
    """The same frames at the same pace, each an item that a Ray actor yields."""

    def draw(self) -> Iterator[bytes]:
        for step in range(STEPS):
            time.sleep(STEP_S)
            yield encode(Progress("a", 1, step + 1, STEPS, 1.0))
        yield encode(Picture("a", 1, 0, 1, SIDE, SIDE, bytes(SIDE * SIDE * 3), False))
        yield encode(Finished("a", 1, {}))


def by_calls(ray: Any, actor: Any) -> tuple[float, list[float]]:
    """As Way.request."""
    started = time.perf_counter()
    moments = []
    for frame in actor.draw.options(num_returns="streaming").remote():
        ray.get(frame)
        moments.append(time.perf_counter())
    return (moments[-1] - started) * 1e3, gaps(moments[:STEPS])


def gaps(moments: list[float]) -> list[float]:
    return [(later - earlier) * 1e3 for earlier, later in pairwise(moments)]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not holds():  # noqa: ASYNC110 - other processes have no event
            await asyncio.sleep(0.0005)


async def costs(machines: RayMachines, requests: int) -> dict[str, dict[str, float]]:
    """Medians by way."""
    ray = importlib.import_module("ray")
    ray.init(address=machines.address, logging_level="ERROR", log_to_driver=False)
    # By value: the machines know this program only as the one that was started.
    importlib.import_module("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])
    actor = ray.remote(num_cpus=1)(FramesAsCalls).remote()
    ways = [Way("child process", ["cpu"]), Way("placed by Ray", ["ray:0"], machines.address)]
    took: dict[str, list[float]] = defaultdict(list)
    between: dict[str, list[float]] = defaultdict(list)
    try:
        for way in ways:
            way.workers.start()
            await way.until_ready()
        for number in range(requests + 1):
            for way in ways:
                note(number, way.name, *await way.request(number), took, between)
            note(number, "frames as Ray calls", *await asyncio.to_thread(by_calls, ray, actor), took, between)
    finally:
        for way in ways:
            await way.workers.stop()
        ray.shutdown()
    return {
        name: {
            "p50_ms": statistics.median(all_ms),
            "p95_ms": statistics.quantiles(all_ms, n=20)[-1],
            "steps_p50_ms": statistics.median(between[name]),
            "steps_p95_ms": statistics.quantiles(between[name], n=20)[-1],
        }
        for name, all_ms in took.items()
    }


def note(
    number: int, name: str, ms: float, steps: list[float], took: dict[str, list[float]], between: dict[str, list[float]]
) -> None:
    """All but the first of each."""
    if number:
        took[name].append(ms)
        between[name] += steps


async def deaths(machines: RayMachines, times: int) -> dict[str, list[float]]:
    """Milliseconds until the node knows that a worker is gone, when its actor and when its machine is killed."""
    way = Way("dying", ["ray:0"], machines.address)
    noticed: dict[str, list[float]] = defaultdict(list)
    way.workers.start()
    try:
        for what in ("actor", "machine"):
            for _ in range(times):
                await way.until_ready()
                (worker,) = way.workers
                assert worker.pid is not None
                actor = psutil.Process(worker.pid).parent()
                victim = actor if what == "actor" else actor.parent()
                before, killed_at = len(way.deaths), time.perf_counter()
                victim.kill()
                await until(lambda before=before: len(way.deaths) > before)  # type: ignore[misc]
                noticed[what].append((way.deaths[-1] - killed_at) * 1e3)
                if what == "machine":
                    await asyncio.to_thread(machines.add, 1)
    finally:
        await way.workers.stop()
    return noticed


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--deaths", type=int, default=5)
    arguments = parser.parse_args()
    with ray_machines(1, 1) as machines:
        figures = await costs(machines, arguments.requests)
        noticed = await deaths(machines, arguments.deaths)
    for name, row in figures.items():
        print(f"{name:22}" + "".join(f"  {key} {value:7.1f}" for key, value in row.items()))
    for what, all_ms in noticed.items():
        print(f"{what} killed, noticed after ms: " + " ".join(f"{ms:.0f}" for ms in all_ms))
    print(json.dumps(stamp() | {"costs": figures, "noticed_ms": noticed}, sort_keys=True))


if __name__ == "__main__":
    asyncio.run(main())
