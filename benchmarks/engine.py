"""The engine under load against what peers do, on the same weights in the same run.

    python -m benchmarks.engine --model flux-shapes
    python -m benchmarks.engine --model random:FLUX.1-dev --device cuda:0 --plot engine.png

Systems:
    stock     diffusers' FluxPipeline, one request after another
    keyed     FluxPipeline over requests of equal size, steps and guidance (at most 8) that came within 50 ms
    samesize  this engine, but only equal sizes share a step, first come first served, at most 8
    engine    this engine as it is served

Regimes: one request at a time; a closed loop of 1, 4, 8 and 16 clients; open-loop Poisson arrivals at 50, 80 and 95 %
of what `stock` can do. Sizes, steps and guidance are mixed. Every system meets the same requests at the same times.
Idle gaps are skipped. Time is real, or processor time where other work shares the cores (`--clock processor`). The last
line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.common import emit, environment
from models.accelerator import Accelerator, open_accelerator, pick_dtype
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load, silence_libraries
from models.shapes.scenes import COLOURS, SHAPES
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.request import Row
from pipelines.engine.runner import Runner
from pipelines.engine.scheduler import SchedulerConfig
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.frames import Cancel, Failed, Finished, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.figures import percentile

SIZES = ((256, 256), (512, 512), (1024, 768), (1024, 1024))
STEPS = (4, 12, 20, 28, 50)
GUIDANCE = (2.0, 3.5, 5.0)
WINDOW_S = 0.05
MAX_KEYED = 8


class Clock:
    """Time without the gaps in which nothing is left to do.

    Processor time instead of real time is what one core of its own would take: the clock for a shared CPU.
    """

    source: Callable[[], float] = time.perf_counter

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        return Clock.source() + self._skipped

    def skip_to(self, moment: float) -> None:
        self._skipped += max(0.0, moment - self())


@dataclass(slots=True)
class Job:
    """One request of the load and when things happened to it, in seconds from the start."""

    params: GenerationParams
    arrival: float = 0.0
    done: float = 0.0

    @property
    def latency(self) -> float:
        return self.done - self.arrival


@dataclass(slots=True)
class Outcome:
    """What one system did with one load."""

    jobs: list[Job] = field(default_factory=list)
    busy_s: float = 0.0
    span_s: float = 0.0
    processor_s: float = 0.0

    def figures(self, alone: Callable[[GenerationParams], float]) -> dict[str, float]:
        latencies = [job.latency for job in self.jobs]
        short = [job.latency for job in self.jobs if job.params.num_inference_steps == min(STEPS)]
        return {
            "images_per_s": len(self.jobs) / self.span_s,
            "mean_s": mean(latencies),
            "p50_s": percentile(latencies, 0.5),
            "p95_s": percentile(latencies, 0.95),
            "p99_s": percentile(latencies, 0.99),
            "p95_4_steps_s": percentile(short, 0.95) if short else 0.0,
            "slowdown": mean(job.latency / alone(job.params) for job in self.jobs),
            "processor_s_per_image": self.processor_s / len(self.jobs),
            "busy": min(1.0, self.busy_s / self.span_s),
        }


class Source:
    """Hands out the jobs of one load: at their times, or as earlier ones end (closed loop)."""

    def __init__(self, jobs: Sequence[Job], clients: int | None) -> None:
        self._left = deque(jobs)
        self._clients = clients
        self.running = 0

    def take(self, now: float) -> list[Job]:
        """The jobs that have arrived by now."""
        taken: list[Job] = []
        while self._left and self._has_arrived(now):
            job = self._left.popleft()
            if self._clients is not None:
                job.arrival = now
            taken.append(job)
            self.running += 1
        return taken

    def end(self, job: Job, now: float) -> None:
        job.done = now
        self.running -= 1

    @property
    def next_arrival(self) -> float | None:
        return self._left[0].arrival if self._left else None

    def _has_arrived(self, now: float) -> bool:
        if self._clients is not None:
            return self.running < self._clients
        return self._left[0].arrival <= now


class Stock:
    """FluxPipeline, first come first served; with `window_s`, equal requests go together."""

    def __init__(self, components: FluxComponents, window_s: float | None = None) -> None:
        self._components = components
        self.pipeline = components.pipeline()
        self._window_s = window_s

    def run(self, source: Source) -> Outcome:
        clock, outcome, waiting = Clock(), Outcome(), deque[Job]()
        start, processor = clock(), time.process_time()
        while True:
            waiting.extend(source.take(clock() - start))
            if not waiting:
                if source.next_arrival is None:
                    break
                clock.skip_to(start + source.next_arrival)
                continue
            batch = self._batch(waiting, source, clock, start)
            began = clock()
            self.generate([job.params for job in batch])
            outcome.busy_s += clock() - began
            for job in batch:
                source.end(job, clock() - start)
                outcome.jobs.append(job)
        outcome.span_s = clock() - start
        outcome.processor_s = time.process_time() - processor
        return outcome

    def _batch(self, waiting: deque[Job], source: Source, clock: Clock, start: float) -> list[Job]:
        first = waiting.popleft()
        if self._window_s is None:
            return [first]
        # The window opens when the oldest arrived; arrivals inside it are waited for.
        closes = first.arrival + self._window_s
        while source.next_arrival is not None and source.next_arrival <= closes and clock() - start < closes:
            clock.skip_to(start + source.next_arrival)
            arrived = source.take(clock() - start)
            waiting.extend(arrived)
            if not arrived:
                break
        if clock() - start < closes:
            clock.skip_to(start + closes)
        same = [job for job in waiting if _key(job.params) == _key(first.params)][: MAX_KEYED - 1]
        for job in same:
            waiting.remove(job)
        return [first, *same]

    @torch.inference_mode()
    def generate(self, batch: Sequence[GenerationParams]) -> None:
        params = batch[0]
        limit = self._components.spec.max_sequence_length
        self.pipeline(
            [each.prompt for each in batch],
            width=params.width,
            height=params.height,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            max_sequence_length=min(params.max_sequence_length, limit),
            generator=[torch.Generator().manual_seed(each.seed) for each in batch],
        )


def _key(params: GenerationParams) -> tuple[object, ...]:
    return params.width, params.height, params.num_inference_steps, params.guidance_scale


class Ours:
    """This engine. With `same_size`, as step batching of equal shapes would run it."""

    def __init__(self, runner: FluxRunner, accelerator: Accelerator, same_size: bool = False) -> None:
        self._runner = runner
        self._accelerator = accelerator
        self._same_size = same_size
        fifo = SchedulerConfig(budget_ms=1e9, max_rows=MAX_KEYED, limit=0.0)
        self.config = EngineConfig(scheduler=fifo if same_size else SchedulerConfig())

    def run(self, source: Source) -> Outcome:
        clock, outcome = Clock(), Outcome()
        ready = threading.Event()
        engine = Engine(self._runner_for, self._accelerator, self.config, clock, ready.set)
        jobs: dict[str, Job] = {}
        start, processor = clock(), time.process_time()
        while True:
            for job in source.take(clock() - start):
                name = str(len(jobs))
                jobs[name] = job
                engine.add_request(Submit(name, 0, self._grouped(job.params).to_dict()))
            if not engine.has_work:
                if source.next_arrival is None:
                    break
                clock.skip_to(start + source.next_arrival)
                continue
            began, steps = clock(), engine.steps
            frames = engine.step(wait=False)
            if not frames and engine.steps == steps:
                ready.wait(0.02 if self._accelerator.notifies else 0.001)
                ready.clear()
            outcome.busy_s += clock() - began
            for frame in frames:
                assert not isinstance(frame, Failed), frame
                if isinstance(frame, Finished):
                    source.end(jobs[frame.job_id], clock() - start)
                    outcome.jobs.append(jobs[frame.job_id])
        outcome.span_s = clock() - start
        outcome.processor_s = time.process_time() - processor
        return outcome

    def _runner_for(self, name: str) -> Runner:
        return self._runner

    def _grouped(self, params: GenerationParams) -> GenerationParams:
        """Rows of different models never share a step: name the size as one."""
        return replace(params, model=f"{params.width}x{params.height}") if self._same_size else params


def make_jobs(count: int, seed: int, model: str) -> list[Job]:
    """Mixed requests; every size meets every step count equally often."""
    rng = random.Random(seed)
    cells = [(size, steps) for size in SIZES for steps in STEPS]
    jobs: list[Job] = []
    while len(jobs) < count:
        rng.shuffle(cells)
        for (width, height), steps in cells[: count - len(jobs)]:
            guidance, prompt = rng.choice(GUIDANCE), _prompt(rng)
            jobs.append(Job(GenerationParams(model, prompt, width, height, steps, guidance, len(jobs))))
    return jobs


def _prompt(rng: random.Random) -> str:
    """One of some two thousand, so that hardly any is found encoded already."""
    colours = list(COLOURS)
    return f"a {rng.choice(colours)} {rng.choice(SHAPES)} on a {rng.choice(colours)} background"


def poisson(jobs: Sequence[Job], rate: float, seed: int) -> list[Job]:
    """The same jobs at random times, `rate` a second."""
    rng = random.Random(seed)
    now, timed = 0.0, []
    for job in jobs:
        now += rng.expovariate(rate)
        timed.append(Job(job.params, now))
    return timed


def alone_times(stock: Stock, jobs: Sequence[Job]) -> Callable[[GenerationParams], float]:
    """Seconds that `stock` takes for one request by itself, by size and steps; each measured once, warm."""
    times: dict[tuple[int, int, int], float] = {}
    for job in jobs:
        params = job.params
        key = (params.width, params.height, params.num_inference_steps)
        if key not in times:
            began = Clock.source()
            stock.generate([params])
            times[key] = Clock.source() - began
    return lambda params: times[params.width, params.height, params.num_inference_steps]


def overhead(runner: FluxRunner, accelerator: Accelerator, params: GenerationParams) -> dict[str, float]:
    """Share of a lone request's steps that is not the model's forward, and steps run after a cancel."""
    forward_ms: list[float] = []
    denoise = runner.denoise

    def timed(rows: Sequence[Row]) -> None:
        began = Clock.source()
        denoise(rows)
        accelerator.mark().wait()
        forward_ms.append((Clock.source() - began) * 1e3)

    runner.denoise = timed  # type: ignore[method-assign]
    try:
        engine = Engine(lambda name: runner, accelerator)
        engine.add_request(Submit("overhead", 0, params.to_dict()))
        whole_ms: list[float] = []
        while len(forward_ms) < params.num_inference_steps:
            began, before = Clock.source(), len(forward_ms)
            engine.step()
            if before and len(forward_ms) > before:
                whole_ms.append((Clock.source() - began) * 1e3)
        _run_out(engine)
        engine.add_request(Submit("cancelled", 0, params.to_dict()))
        engine.step()
        engine.step()
        engine.abort(Cancel("cancelled", 0))
        count = len(forward_ms)
        _run_out(engine)
    finally:
        runner.denoise = denoise  # type: ignore[method-assign]
    step_ms = percentile(forward_ms, 0.5)
    outside = [whole - inner for whole, inner in zip(whole_ms, forward_ms[1:], strict=False)]
    return {
        "forward_ms": step_ms,
        "outside_forward_ms": percentile(outside, 0.5),
        "outside_share": percentile(outside, 0.5) / step_ms,
        "steps_after_cancel": float(len(forward_ms) - count),
    }


def _run_out(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator))
    runner = FluxRunner(components, accelerator)
    stock = Stock(components)
    systems: dict[str, Stock | Ours] = {
        "stock": stock,
        "keyed": Stock(components, WINDOW_S),
        "samesize": Ours(runner, accelerator, same_size=True),
        "engine": Ours(runner, accelerator),
    }
    systems = {name: system for name, system in systems.items() if name in arguments.systems}
    jobs = make_jobs(arguments.requests, arguments.seed, spec.name)
    default = replace(jobs[0].params, width=1024, height=768, num_inference_steps=28, guidance_scale=3.5)
    for warm in (stock, Ours(runner, accelerator)):
        warm.run(Source([Job(default)], 1))
    alone = alone_times(stock, jobs)
    report: dict[str, Any] = {
        "benchmark": "engine",
        "model": spec.name,
        "dtype": str(components.dtype),
        "environment": environment(accelerator.name),
        "overhead": overhead(runner, accelerator, default),
        "alone": {},
        "closed": {},
        "open": {},
    }
    for name in ("stock", "engine"):
        outcome = systems[name].run(Source([Job(default) for _ in range(arguments.repeats)], 1))
        report["alone"][name] = percentile([job.latency for job in outcome.jobs], 0.5)
        print(f"one 1024 x 768, 28 steps at a time: {name:9} {report['alone'][name]:.3f} s", flush=True)
    for clients in arguments.clients:
        row: dict[str, dict[str, float]] = {}
        report["closed"][str(clients)] = row
        for name in ("stock", "engine"):
            if name == "stock" and clients != arguments.clients[0]:
                continue  # one at a time takes as long however many wait
            outcome = systems[name].run(Source([Job(job.params) for job in jobs], clients))
            row[name] = outcome.figures(alone)
            _print_row(f"closed, {clients} clients", name, row[name])
    capacity = report["closed"][str(arguments.clients[0])]["stock"]["images_per_s"]
    outcomes = {}
    for share in arguments.loads:
        row = {}
        report["open"][str(share)] = row
        timed = poisson(jobs, share * capacity, arguments.seed)
        for name, system in systems.items():
            outcomes[share, name] = system.run(Source([Job(job.params, job.arrival) for job in timed], None))
            row[name] = outcomes[share, name].figures(alone)
            _print_row(f"open, {share:.0%}", name, row[name])
    report["ratios"] = _ratios(report, arguments)
    report["memory"] = accelerator.memory()
    if arguments.plot:
        _plot(outcomes, arguments.plot, f"{spec.name} on {accelerator.name}")
    return report


def _print_row(regime: str, name: str, figures: dict[str, float]) -> None:
    print(
        f"{regime:18} {name:9} {figures['images_per_s']:7.3f} images/s   mean {figures['mean_s']:7.2f} s   "
        f"p50 {figures['p50_s']:6.2f}   p95 {figures['p95_s']:6.2f}   p99 {figures['p99_s']:6.2f}   "
        f"4 steps p95 {figures['p95_4_steps_s']:6.2f}   slowdown {figures['slowdown']:6.2f}   "
        f"busy {figures['busy']:.0%}",
        flush=True,
    )


def _ratios(report: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """The engine over stock: the figures that goals are set for."""
    stock = report["closed"][str(arguments.clients[0])]["stock"]
    best = max(row["engine"]["images_per_s"] for row in report["closed"].values())
    ratios = {"saturated_images_per_s": best / stock["images_per_s"]}
    for share, row in report["open"].items():
        if {"stock", "engine"} <= row.keys():
            ratios[f"mean_at_{share}"] = row["engine"]["mean_s"] / row["stock"]["mean_s"]
            ratios[f"p95_4_steps_at_{share}"] = row["engine"]["p95_4_steps_s"] / row["stock"]["p95_4_steps_s"]
    return ratios


def _plot(outcomes: dict[tuple[float, str], Outcome], file: Path, title: str) -> None:
    """Share of requests answered within a time, a panel a load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = sorted({share for share, _ in outcomes})
    figure, axes = pyplot.subplots(1, len(shares), figsize=(5 * len(shares), 4), sharey=True, squeeze=False)
    for axis, share in zip(axes[0], shares, strict=True):
        for (at, name), outcome in outcomes.items():
            if at == share:
                latencies = sorted(job.latency for job in outcome.jobs)
                axis.step(
                    latencies, [(i + 1) / len(latencies) for i in range(len(latencies))], label=name, where="post"
                )
        axis.set(xlabel="seconds to the picture", title=f"{share:.0%} of stock capacity", xscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share of requests")
    axes[0][-1].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=40, help="a regime; 20 cover all sizes and steps once")
    parser.add_argument("--repeats", type=int, default=5, help="of the request alone")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 0.95])
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
