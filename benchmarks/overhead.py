"""What the node adds to a request: submit to worker, and last pixel to visible result, through a real worker process.

    python -m benchmarks.overhead [--model NAME] [--requests N] [--side PIXELS]

One request at a time, so that nothing waits for the engine. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path

from benchmarks.store import fsync_cost
from models.arguments import resolve
from pipelines.protocol.frames import Finished, Frame, Started
from pipelines.protocol.params import GenerationParams
from server.jobs.store.job import NewJob
from server.node import Node
from server.settings import Settings
from server.workers.process import Worker


class Stopwatch:
    """Notes when frames arrive, in front of the dispatcher that answers them."""

    def __init__(self, node: Node) -> None:
        self.moments: dict[str, float] = {}
        self._on_frame = node.dispatcher.on_frame
        node.dispatcher.on_frame = self._note  # type: ignore[method-assign]

    def _note(self, worker: Worker, frame: Frame) -> None:
        if isinstance(frame, Started | Finished):
            self.moments[type(frame).__name__] = time.perf_counter()
        self._on_frame(worker, frame)


async def one(node: Node, watch: Stopwatch, params: GenerationParams) -> dict[str, float]:
    """One request from submit to result; milliseconds by stage."""
    new = NewJob(str(uuid.uuid4()), "fal-ai/flux/dev", {}, params.to_dict(), {"format": "jpeg"})
    started = time.perf_counter()
    await asyncio.to_thread(node.jobs.submit, new)
    submitted = time.perf_counter()
    job = await node.jobs.wait_finished(new.id, 120)
    seen = time.perf_counter()
    assert job is not None, "the request did not end"
    assert job.outcome is not None
    begun, finished = watch.moments["Started"], watch.moments["Finished"]
    inference_s = job.outcome.metrics["inference_time"]
    return {
        "submit": (submitted - started) * 1e3,
        "submitted to begun": (begun - submitted) * 1e3,
        "finished to visible": (seen - finished) * 1e3,
        "all but inference": (seen - started - inference_s) * 1e3,
    }


async def measure(folder: Path, model: str, requests: int, side: int) -> dict[str, dict[str, float]]:
    """Median and largest of every stage, after one request that is not counted."""
    node = Node.from_settings(Settings(data_dir=folder, models=(model,)))
    watch = Stopwatch(node)
    await node.start()
    while not node.ready:  # noqa: ASYNC110 - loading takes seconds
        await asyncio.sleep(0.1)
    await node.outputs.warm()
    params = GenerationParams(resolve(model).name, "a red circle", side, side, 2, 3.5, seed=1, max_sequence_length=16)
    await one(node, watch, params)
    stages: dict[str, list[float]] = defaultdict(list)
    for _ in range(requests):
        for stage, took_ms in (await one(node, watch, params)).items():
            stages[stage].append(took_ms)
    await node.stop()
    return {stage: {"p50_ms": statistics.median(all_ms), "max_ms": max(all_ms)} for stage, all_ms in stages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {"fsync before": fsync_cost(folder)}
        figures |= asyncio.run(measure(folder, arguments.model, arguments.requests, arguments.side))
        figures["fsync after"] = fsync_cost(folder)
    for stage, values in figures.items():
        print(f"{stage:22}" + "".join(f"  {key} {value:.2f}" for key, value in values.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
