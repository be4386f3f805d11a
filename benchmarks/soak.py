"""A steady load for an hour: memory, descriptors and latency must stay flat.

    python -m benchmarks.soak [--minutes 60] [--rate 4]

The node is real, its worker pretends. Every request is submitted, polled to its end, read and its picture fetched; one
in ten is watched over an event stream, one in ten cancelled, one in ten malformed. Prints one JSON line: `growth` holds
the medians of the last fifth beside those of the second one (the first warms up), of the node and of its children.
Every sample goes to the standard error output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

import httpx
import psutil

from benchmarks.load import Served, fake_server
from server.bench.stamp import stamp

SAMPLE_S = 5.0
STEP_S = 0.02
APP = "/queue/fal-ai/flux"
BODY = {"prompt": "a red circle", "num_inference_steps": 4, "image_size": {"width": 128, "height": 128}}


@dataclass
class Soak:
    """What was seen so far; times are seconds since the start."""

    http: httpx.AsyncClient
    began: float = field(default_factory=time.monotonic)
    waits: list[tuple[float, float]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    async def one(self, number: int) -> None:
        """One request from its submit to its picture."""
        began = time.monotonic()
        kind = {3: "malformed", 6: "cancelled", 9: "watched"}.get(number % 10, "polled")
        try:
            body = BODY | {"seed": number} | ({"num_inference_steps": "many"} if kind == "malformed" else {})
            submitted = (await self.http.post(f"{APP}/dev", json=body)).raise_for_status().json()
            address = f"{APP}/requests/{submitted['request_id']}"
            if kind == "cancelled":
                await self.http.put(f"{address}/cancel")
            await (self._watch(address) if kind == "watched" else self._poll(address))
            result = await self.http.get(address)
            if kind == "polled":
                self.waits.append((began - self.began, time.monotonic() - began))
                (await self.http.get(result.json()["images"][0]["url"])).raise_for_status()
            self.seen[kind] += 1
        except (httpx.HTTPError, KeyError, ValueError) as exc:
            self.seen[f"failed: {type(exc).__name__}"] += 1

    async def _poll(self, address: str) -> None:
        while (await self.http.get(f"{address}/status")).raise_for_status().json()["status"] != "COMPLETED":  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def _watch(self, address: str) -> None:
        async with self.http.stream("GET", f"{address}/status/stream?logs=1") as stream:
            async for _ in stream.aiter_lines():
                pass

    def sample(self, node: psutil.Process) -> None:
        """Memory and descriptors now."""
        children = node.children(recursive=True)
        self.samples.append(
            {
                "at": time.monotonic() - self.began,
                "node_mb": node.memory_info().rss / 1e6,
                "children_mb": sum(child.memory_info().rss for child in children) / 1e6,
                "descriptors": float(node.num_fds()),
                "threads": float(node.num_threads()),
            }
        )
        print(json.dumps(self.samples[-1]), file=sys.stderr, flush=True)


async def _load(served: Served, seconds: float, rate: float) -> Soak:
    node = psutil.Process(served.pid)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=60, trust_env=False) as http:
        soak = Soak(http)
        async with asyncio.TaskGroup() as group:
            number = 0
            while (passed := time.monotonic() - soak.began) < seconds:
                if passed >= len(soak.samples) * min(SAMPLE_S, seconds / 40):
                    soak.sample(node)
                group.create_task(soak.one(number))
                number += 1
                await asyncio.sleep(max(0.0, number / rate - (time.monotonic() - soak.began)))
        return soak


def soak(minutes: float, rate: float, folder: Path) -> dict[str, Any]:
    """The report on so many minutes at so many requests a second."""
    with fake_server(folder, step_s=STEP_S) as served:
        seen = asyncio.run(_load(served, minutes * 60, rate))
    seconds = minutes * 60
    early = [entry for entry in seen.samples if 0.2 * seconds <= entry["at"] < 0.4 * seconds]
    late = [entry for entry in seen.samples if entry["at"] >= 0.8 * seconds]
    after = [entry for entry in seen.samples if entry["at"] >= 0.2 * seconds]
    slope = linear_regression([entry["at"] for entry in after], [entry["node_mb"] for entry in after]).slope
    names = ("node_mb", "children_mb", "descriptors", "threads")
    return {
        "benchmark": "soak",
        "minutes": minutes,
        "rate": rate,
        "requests": dict(seen.seen),
        "growth": {
            name: [round(median([entry[name] for entry in part] or [0.0]), 1) for part in (early, late)]
            for name in names
        },
        "node_mb_per_hour": round(slope * 3600, 2),
        "latency_ms": {
            "early": _latency([wait for at, wait in seen.waits if 0.2 * seconds <= at < 0.4 * seconds]),
            "late": _latency([wait for at, wait in seen.waits if at >= 0.8 * seconds]),
        },
    }


def _latency(waits: list[float]) -> dict[str, float]:
    if len(waits) < 2:
        return {}
    cuts = quantiles(waits, n=100)
    return {"p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(arguments.minutes, arguments.rate, Path(folder))
    print(json.dumps(report | {"stamp": stamp()}), flush=True)
    sys.exit(any(name.startswith("failed") for name in report["requests"]))


if __name__ == "__main__":
    main()
