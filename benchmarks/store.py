"""What durability costs: submits, claims and ends per second and their latency, beside the disk's own fsync.

    python -m benchmarks.store [--folder DIR] [--jobs N]

Read every figure beside its `fsync_p50_ms`: a commit cannot be faster than the disk. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from server.jobs.store.job import JobStatus, NewJob, Outcome
from server.jobs.store.sql import SqlStore
from server.jobs.store.sqlite import SqliteStore

LEASE_S = 30.0
DONE = Outcome(JobStatus.COMPLETED, 200, {"images": []}, metrics={"inference_time": 1.0})


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def summary(latencies_ms: Iterable[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(latencies_ms)
    return {"p50_ms": statistics.median(ordered), "p99_ms": ordered[int(0.99 * (len(ordered) - 1))]}


def fsync_cost(folder: Path, times: int = 100) -> dict[str, float]:
    """Overwrite 4 KiB and sync, again and again, as a write-ahead log does: what the disk takes for one commit."""
    sync = getattr(os, "fdatasync", os.fsync)
    with (folder / "probe").open("wb", buffering=0) as probe:

        def write() -> None:
            probe.seek(0)
            probe.write(os.urandom(4096))
            sync(probe.fileno())

        return summary(timed_ms(write) for _ in range(times))


def submits(store: SqlStore, jobs: int, threads: int) -> dict[str, float]:
    """Submits from so many threads at once: rate and latency."""

    def submit(number: int) -> float:
        params = {"model": "m", "prompt": "a red circle", "seed": number}
        new = NewJob(f"{threads}-{number}", "fal-ai/flux/dev", {"prompt": "a red circle"}, params)
        return timed_ms(lambda: store.enqueue(new))

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        latencies = list(pool.map(submit, range(jobs)))
    return {"per_s": jobs / (time.perf_counter() - started), **summary(latencies)}


def reads(store: SqlStore, job_id: str, times: int = 2000) -> dict[str, float]:
    """What one status poll asks."""
    return summary(timed_ms(lambda: store.state(job_id)) for _ in range(times))


def claims_and_ends(store: SqlStore, jobs: int) -> dict[str, dict[str, float]]:
    """Claim and end one job at a time, as one idle worker makes the dispatcher do."""
    claims, ends = [], []
    for _ in range(jobs):
        started = time.perf_counter()
        (job,) = store.claim("owner", 1, LEASE_S)
        claims.append((time.perf_counter() - started) * 1e3)
        ends.append(timed_ms(partial(store.finish, job.id, "owner", job.epoch, DONE)))
    return {"claim": summary(claims), "finish": summary(ends)}


def measure(folder: Path, jobs: int) -> dict[str, dict[str, float]]:
    """All figures by name, each with the disk's own cost right after it: on a shared disk that moves by the second."""
    store = SqliteStore(folder / "jobs.db")
    figures: dict[str, dict[str, float]] = {}

    def note(name: str, figure: dict[str, float]) -> None:
        figures[name] = figure | {"fsync_p50_ms": fsync_cost(folder)["p50_ms"]}

    for threads in (1, 16, 64):
        note(f"submit, {threads} at once", submits(store, jobs, threads))
    note(f"status, {3 * jobs} waiting", reads(store, f"1-{jobs - 1}"))
    for name, figure in claims_and_ends(store, jobs // 4).items():
        note(name, figure)
    store.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--jobs", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.jobs)
    for name, values in figures.items():
        print(f"{name:24}" + "".join(f"  {key} {value:.3f}" for key, value in values.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
