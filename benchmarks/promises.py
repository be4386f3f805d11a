"""Every figure about latency under load that the project has a goal for, in one run of some ten minutes on two cores.

    python -m benchmarks.promises --out benchmarks/results/promises-flux-shapes-cpu.json \
        --plot docs/images/promises-flux-shapes-cpu.png

Systems and load are those of `benchmarks.engine`: mixed sizes and steps, Poisson arrivals, idle gaps skipped. At
80 % of what `stock` can do all four systems meet the same requests, at 95 % the engine and request batching by key.
`stock` can do what its requests take alone, one after another. Attainment is the share of requests that take at most
three times what `stock` takes for them alone. The scheduler's own time a step is measured without a model, with 1,000
requests that came at once. Prints a table beside the goals; the last line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.common import emit, environment
from benchmarks.engine.load import Job, make_jobs, poisson
from benchmarks.engine.open_loop import Figures, Outcomes, Systems, run_open
from benchmarks.engine.plots import plot
from benchmarks.engine.systems import WINDOW_S, Clock, Ours, Source, Stock, alone_times
from benchmarks.order import planning_ms
from models.accelerator import open_accelerator, pick_dtype
from models.arguments import resolve
from models.loading import load, silence_libraries
from pipelines.families.flux1.runner import FluxRunner
from server.bench.report import table

HALF_FULL, FULL = 0.8, 0.95
WAITING = 1000
GOALS = {
    "attainment at 80 %": ("at least", 0.99),
    "attainment at 95 %, points above request batching": ("at least", 0.20),
    "p99 at 80 %, of same-size step batching's": ("at most", 1.0),
    "mean at 80 %, of same-size step batching's": ("at most", 0.75),
    "mean at 80 %, of stock's": ("at most", 0.35),
    "scheduler, ms a step with 1,000 waiting": ("at most", 0.3),
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator))
    runner = FluxRunner(components, accelerator)
    stock, engine = Stock(components), Ours(runner, accelerator)
    systems: Systems = {
        "stock": stock,
        "keyed": Stock(components, WINDOW_S),
        "samesize": Ours(runner, accelerator, same_size=True),
        "engine": engine,
    }
    jobs = make_jobs(arguments.requests, arguments.seed, spec.name)
    for warm in (stock, engine):
        warm.run(Source([Job(job.params) for job in jobs[:4]], 1))
    alone = alone_times(stock, jobs)
    capacity = 1 / fmean(alone(job.params) for job in jobs)
    outcomes: Outcomes = {}
    figures: dict[str, Figures] = {}
    for share, names in ((HALF_FULL, list(systems)), (FULL, ["keyed", "engine"])):
        chosen = {name: systems[name] for name in names}
        timed = {share: poisson(jobs, share * capacity, arguments.seed)}
        figures |= run_open(chosen, timed, alone, "open", outcomes)
    if arguments.plot:
        plot(outcomes, alone, arguments.plot, f"{spec.name} on {accelerator.name}")
    median, most = planning_ms(WAITING)
    return {
        "benchmark": "promises",
        "model": spec.name,
        "requests": arguments.requests,
        "clock": arguments.clock,
        "environment": environment(accelerator.name),
        "open": figures,
        "step_with_1000_waiting": {"p50_ms": median, "p99_ms": most},
        "promises": promises(figures, median),
    }


def promises(figures: dict[str, Figures], planning: float) -> dict[str, float]:
    """The figures by the names of their goals. Args: figures: by load and system. planning: ms."""
    usual, full = figures[str(HALF_FULL)], figures[str(FULL)]
    engine, same_size = usual["engine"], usual["samesize"]
    values = (
        engine["within_3x"],
        full["engine"]["within_3x"] - full["keyed"]["within_3x"],
        engine["p99_s"] / same_size["p99_s"],
        engine["mean_s"] / same_size["mean_s"],
        engine["mean_s"] / usual["stock"]["mean_s"],
        planning,
    )
    return dict(zip(GOALS, values, strict=True))


def rows(measured: dict[str, float]) -> list[dict[str, str]]:
    """The table: each figure beside its goal."""
    lines = []
    for name, value in measured.items():
        bound, goal = GOALS[name]
        is_kept = value >= goal if bound == "at least" else value <= goal
        kept = "yes" if is_kept else "no"
        lines.append({"figure": name, "measured": f"{value:.3f}", "goal": f"{bound} {goal:g}", "kept": kept})
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=200, help="a load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("real", "processor"), default="real", help="processor: where other work shares the cores"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, help="also write the report here")
    arguments = parser.parse_args(argv)
    if arguments.clock == "processor":
        Clock.source = time.process_time
    silence_libraries()
    torch.set_grad_enabled(False)
    report = measure(arguments)
    print(table(rows(report["promises"])))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    emit(report)


if __name__ == "__main__":
    main()
