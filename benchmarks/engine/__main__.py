"""The engine under load against what peers do, on the same weights in the same run.

    python -m benchmarks.engine --model flux-shapes
    python -m benchmarks.engine --model random:FLUX.1-dev --device cuda:0 --plot engine.png

Systems:
    stock     diffusers' FluxPipeline, one request after another
    keyed     FluxPipeline over requests of equal size, steps and guidance (at most 8) that came within 50 ms
    samesize  this engine, but only equal sizes share a step, first come first served, at most 8
    engine    this engine as it is served

Regimes: one request at a time; a closed loop of 1, 4, 8 and 16 clients; open-loop Poisson arrivals at 50, 80, 95 and
110 % of what `stock` can do, and recorded bursts at 80 %. Sizes, steps and guidance are mixed. Every system meets the
same requests at the same times. Attainment is the share of requests that took at most 1.5, 3 and 5 times what `stock`
takes for them alone. Idle gaps are skipped. Time is real, or processor time where other work shares the cores
(`--clock processor`). The last line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import emit, environment
from benchmarks.engine.load import Job, bursts, make_jobs, poisson
from benchmarks.engine.open_loop import Figures, Outcomes, Systems, print_row, run_open
from benchmarks.engine.overhead import overhead
from benchmarks.engine.plots import plot
from benchmarks.engine.systems import WINDOW_S, Alone, Clock, Ours, Source, Stock, alone_times
from models.accelerator import open_accelerator, pick_dtype
from models.arguments import resolve
from models.auxiliaries import no_auxiliaries
from models.loading import load, silence_libraries
from models.tuning import AUTO
from pipelines.adapters.cache import NO_ADAPTERS
from pipelines.families.table import family_of
from pipelines.protocol.params import GenerationParams
from server.bench.figures import percentile


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator))
    helpers = {"adapters": NO_ADAPTERS, "find": no_auxiliaries}
    runner = family_of(spec).run(components, accelerator, AUTO, lambda sentence: None, **helpers)  # type: ignore[arg-type]
    stock = Stock(components)
    systems: Systems = {
        "stock": stock,
        "keyed": Stock(components, WINDOW_S),
        "samesize": Ours(runner, accelerator, same_size=True),
        "engine": Ours(runner, accelerator),
    }
    systems = {name: system for name, system in systems.items() if name in arguments.systems}
    jobs = make_jobs(arguments.requests, arguments.seed, spec.name, arguments.shrink)
    default = replace(
        jobs[0].params,
        width=1024 // arguments.shrink,
        height=768 // arguments.shrink,
        num_inference_steps=28,
        guidance_scale=3.5,
    )
    for warm in (stock, Ours(runner, accelerator)):
        warm.run(Source([Job(default)], 1))
    alone = alone_times(stock, jobs)
    report: dict[str, Any] = {
        "benchmark": "engine",
        "model": spec.name,
        "dtype": str(components.dtype),
        "environment": environment(accelerator.name),
        "overhead": overhead(runner, accelerator, default),
        "alone": _one_at_a_time(systems, default, arguments.repeats),
        "closed": _closed(systems, jobs, arguments.clients, alone),
    }
    capacity = report["closed"][str(arguments.clients[0])]["stock"]["images_per_s"]
    outcomes: Outcomes = {}
    timed = {share: poisson(jobs, share * capacity, arguments.seed) for share in arguments.loads}
    report["open"] = run_open(systems, timed, alone, "open", outcomes)
    in_bursts = {share: bursts(jobs, share * capacity) for share in arguments.bursts}
    report["bursts"] = run_open(systems, in_bursts, alone, "bursts", {})
    report["ratios"] = _ratios(report, arguments)
    report["memory"] = accelerator.memory()
    if arguments.plot:
        plot(outcomes, alone, arguments.plot, f"{spec.name} on {accelerator.name}")
    return report


def _one_at_a_time(systems: Systems, params: GenerationParams, repeats: int) -> dict[str, float]:
    """Median seconds of the same request again and again."""
    medians = {}
    for name in ("stock", "engine"):
        outcome = systems[name].run(Source([Job(params) for _ in range(repeats)], 1))
        medians[name] = percentile([job.latency for job in outcome.jobs], 0.5)
        print(f"one 1024 x 768, 28 steps at a time: {name:9} {medians[name]:.3f} s", flush=True)
    return medians


def _closed(systems: Systems, jobs: Sequence[Job], counts: Sequence[int], alone: Alone) -> dict[str, Figures]:
    """So many clients, each with its next request as soon as the last one ended."""
    report: dict[str, Figures] = {}
    for clients in counts:
        row = report.setdefault(str(clients), {})
        for name in ("stock", "engine"):
            if name == "stock" and clients != counts[0]:
                continue  # one at a time takes as long however many wait
            outcome = systems[name].run(Source([Job(job.params) for job in jobs], clients))
            row[name] = outcome.figures(alone)
            print_row(f"closed, {clients} clients", name, row[name])
    return report


def _ratios(report: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """The engine over stock and over same-size batching: the figures that goals are set for."""
    stock = report["closed"][str(arguments.clients[0])]["stock"]
    best = max(row["engine"]["images_per_s"] for row in report["closed"].values())
    ratios = {"saturated_images_per_s": best / stock["images_per_s"]}
    for share, row in report["open"].items():
        if {"stock", "engine"} <= row.keys():
            ratios[f"mean_at_{share}"] = row["engine"]["mean_s"] / row["stock"]["mean_s"]
            ratios[f"p95_4_steps_at_{share}"] = row["engine"]["p95_4_steps_s"] / row["stock"]["p95_4_steps_s"]
        if {"samesize", "engine"} <= row.keys():
            for figure in ("mean_s", "p99_s"):
                ratios[f"{figure}_of_samesize_at_{share}"] = row["engine"][figure] / row["samesize"][figure]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--shrink", type=int, default=1, help="of all sides: 8 for random:tiny-klein")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=40, help="a regime; 20 cover all sizes and steps once")
    parser.add_argument("--repeats", type=int, default=5, help="of the request alone")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 0.95, 1.1])
    parser.add_argument("--bursts", type=float, nargs="*", default=[0.8], help="loads of the recorded bursts")
    parser.add_argument("--systems", nargs="+", default=["stock", "keyed", "samesize", "engine"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("real", "processor"), default="real", help="processor: where other work shares the cores"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    if not {"stock", "engine"} <= set(arguments.systems):
        parser.error("--systems needs stock and engine: the ratios are between them")
    if arguments.clock == "processor":
        Clock.source = time.process_time
    silence_libraries()
    torch.set_grad_enabled(False)
    report = measure(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    emit(report)


if __name__ == "__main__":
    main()
