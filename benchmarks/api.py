"""What the API costs around the engine, through real processes on loopback.

    python -m benchmarks.api [--model flux-shapes] [--requests 200]

Three regimes: seconds from start to /livez and /readyz; submit and status latency of raw HTTP on a kept
connection; and the default request (landscape_4_3, 28 steps) end to end through the unmodified `fal_client`,
of which the engine's own share is told by the answer's timings. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from server.bench.stamp import stamp
from tests.acceptance.serving import Server, clean_environment

QUICK = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}

CLIENT = """
import json, sys, time
import fal_client
arguments, repeats = json.loads(sys.argv[1])
for _ in range(repeats):
    start = time.perf_counter()
    result = fal_client.subscribe("fal-ai/flux-pro", arguments)
    print(json.dumps([time.perf_counter() - start, result["timings"]["inference"]]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Report:
    """Seconds unless the name says milliseconds."""

    livez_s: float
    readyz_s: float
    submit_p50_ms: float
    submit_p99_ms: float
    status_p50_ms: float
    status_p99_ms: float
    default_p50_s: float
    default_engine_p50_s: float
    default_outside_p50_ms: float


def milliseconds(samples: list[float]) -> tuple[float, float]:
    """Median and 99th percentile of seconds, as milliseconds."""
    return median(samples) * 1e3, quantiles(samples, n=100)[98] * 1e3


def time_calls(server: Server, requests: int) -> tuple[list[float], list[float]]:
    """Seconds of every submit, and of one status call after each, over one kept connection."""
    submits, statuses = [], []
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for _ in range(requests):
            start = time.perf_counter()
            job = http.post("/queue/fal-ai/flux/dev", json=QUICK).raise_for_status().json()
            submitted = time.perf_counter()
            http.get(job["status_url"]).raise_for_status()
            statuses.append(time.perf_counter() - submitted)
            submits.append(submitted - start)
            wait_finished(http, job["status_url"])
    return submits, statuses


def wait_finished(http: httpx.Client, status_url: str) -> None:
    """Return when a job has ended, so that the next one finds an idle machine."""
    while http.get(status_url).json()["status"] != "COMPLETED":
        time.sleep(0.005)


def time_default_request(server: Server, repeats: int) -> list[tuple[float, float]]:
    """(end to end, engine) seconds of the default request through fal_client; the first, cold one is left out."""
    arguments: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 7}
    command = [sys.executable, "-c", CLIENT, json.dumps([arguments, repeats + 1])]
    environment = clean_environment() | server.setup("python")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    pairs = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    return [(wall, engine) for wall, engine in pairs[1:]]


def measure(model: str, requests: int, repeats: int) -> Report:
    """Start a server in a folder of its own and measure all three regimes."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "node", model=model).start()
        try:
            livez_s, readyz_s = server.wait_live(), server.wait_ready()
            submits, statuses = time_calls(server, requests)
            defaults = time_default_request(server, repeats)
        finally:
            server.close()
    return Report(
        livez_s,
        readyz_s,
        *milliseconds(submits),
        *milliseconds(statuses),
        median(wall for wall, _ in defaults),
        median(engine for _, engine in defaults),
        median(wall - engine for wall, engine in defaults) * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--requests", type=int, default=200, help="submit and status calls to time")
    parser.add_argument("--repeats", type=int, default=5, help="default requests to time")
    arguments = parser.parse_args()
    environment = stamp()
    report = asdict(measure(arguments.model, arguments.requests, arguments.repeats))
    for name, value in report.items():
        print(f"{name:24} {value:9.2f}")
    print(json.dumps({"benchmark": "api", "model": arguments.model, "environment": environment} | report))


if __name__ == "__main__":
    main()
