"""What the order of service does to waits, on a device that exists only as arithmetic: seconds instead of hours.

    python -m benchmarks.order
    python -m benchmarks.order --requests 20000 --loads 0.8 --limits 0 2 3 4

The scheduler is the real one. The pretended device takes as long for a step as FLUX.1-dev's size took on an H200 in
bfloat16 (benchmarks/results/h200-2026-11-27-replay: 3.60 s for 28 steps of 1024 x 1024, 1.11 s for 512 x 512), so that
packing gains next to nothing and only the order counts. The load is that of `benchmarks.engine`.

Systems: `stock` serves one request after another; `first` packs steps in the order of arrival; `limit L` as served,
with requests due L times their work after they arrive. The last line is the report as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import count
from statistics import fmean
from time import perf_counter

from benchmarks.engine.load import Job, bursts, make_jobs, poisson
from pipelines.engine.cost import CostModel
from pipelines.engine.request import Request
from pipelines.engine.scheduler import Scheduler, SchedulerConfig
from server.bench.figures import percentile

DEVICE = (2.0, 22.1, 0.857)
"""Milliseconds a step: fixed, by 1,000 tokens, by 1,000 x 1,000 tokens of one picture."""

TEXT_TOKENS = 512
LIMITS = (1.5, 3.0, 5.0)


def tokens_of(job: Job) -> int:
    """Joint tokens of a picture of FLUX.1."""
    return TEXT_TOKENS + job.params.width * job.params.height // 256


def alone_ms(job: Job) -> float:
    """All steps of a request that has the device for itself."""
    return job.params.num_inference_steps * CostModel(DEVICE).predict([tokens_of(job)])


def one_by_one(jobs: Sequence[Job]) -> None:
    """First come, first served, one at a time."""
    now = 0.0
    for job in jobs:
        now = max(now, job.arrival) + alone_ms(job) / 1e3
        job.done = now


def packed(jobs: Sequence[Job], config: SchedulerConfig) -> None:
    """The scheduler's own steps."""
    scheduler, device = Scheduler(config, CostModel(DEVICE)), CostModel(DEVICE)
    numbers, waiting, now = count(), list(reversed(jobs)), 0.0
    served: dict[Request, Job] = {}
    while waiting or served:
        if not served:
            now = max(now, waiting[-1].arrival)
        while waiting and waiting[-1].arrival <= now:
            job = waiting.pop()
            request = Request(str(next(numbers)), 1, job.params, "m", tokens_of(job), job.arrival)
            served[request] = job
            scheduler.add(request)
        plan = scheduler.plan(now)
        for row in plan:
            scheduler.admit(row.request)
        now += device.predict(row.tokens for row in plan) / 1e3
        for row in scheduler.advance(plan):
            served.pop(row.request).done = now


def figures(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds, and shares of requests within times of what they take alone."""
    latencies = [job.latency for job in jobs]
    slowdowns = [job.latency * 1e3 / alone_ms(job) for job in jobs]
    seconds = {"mean_s": fmean(latencies), "p95_s": percentile(latencies, 0.95), "p99_s": percentile(latencies, 0.99)}
    shares = {f"within_{limit:g}x": fmean(each <= limit for each in slowdowns) for limit in LIMITS}
    return seconds | shares | {"worst_slowdown": max(slowdowns)}


def planning_ms(waiting: int) -> tuple[float, float]:
    """Milliseconds of the scheduler's own a step while so many requests wait, planned anew each time: median, 99 %.

    All came at once, so that many are late at the same moment.
    """
    scheduler = Scheduler(SchedulerConfig(), CostModel(DEVICE))
    for number, job in enumerate(make_jobs(waiting + 200, 1, "m")):
        scheduler.add(Request(str(number), 1, job.params, "m", tokens_of(job), 0.0))
    took = []
    for step in range(200):
        scheduler.reconsider()
        began = perf_counter()
        plan = scheduler.plan(step * 0.1)
        for row in plan:
            scheduler.admit(row.request)
        scheduler.advance(plan)
        took.append((perf_counter() - began) * 1e3)
    return percentile(took, 0.5), percentile(took, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 0.95, 1.1])
    parser.add_argument("--limits", type=float, nargs="+", default=[SchedulerConfig().limit])
    parser.add_argument("--bursts", action="store_true", help="the recorded bursts instead of Poisson arrivals")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    base = make_jobs(arguments.requests, arguments.seed, "m")
    capacity = 1e3 / fmean(alone_ms(job) for job in base)
    orders = {f"limit {limit:g}": SchedulerConfig(limit=limit) for limit in arguments.limits}
    report: dict[str, dict[str, dict[str, float]]] = {}
    for load in arguments.loads:
        row = report.setdefault(str(load), {})
        rate = load * capacity
        for name in ("stock", "first", *orders):
            jobs = bursts(base, rate) if arguments.bursts else poisson(base, rate, arguments.seed)
            if name == "stock":
                one_by_one(jobs)
            else:
                packed(jobs, orders.get(name, SchedulerConfig(limit=0.0)))
            row[name] = figures(jobs)
            print(f"{load:5.0%} {name:9}", "  ".join(f"{key} {value:.3g}" for key, value in row[name].items()))
    median, most = planning_ms(1000)
    print(f"the scheduler's own time a step with 1,000 waiting: {median:.3f} ms, 99 % {most:.3f}")
    planning = {"p50_ms": median, "p99_ms": most}
    print(json.dumps({"benchmark": "order", "open": report, "step_with_1000_waiting": planning}, sort_keys=True))


if __name__ == "__main__":
    main()
