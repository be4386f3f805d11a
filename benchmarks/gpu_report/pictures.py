"""Whole pictures, one request after another and eight at once: seconds, images a second, energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.engine.load import Job
from benchmarks.engine.overhead import overhead
from benchmarks.engine.systems import Ours, Source, Stock
from benchmarks.gpu_report.parts import Figures
from benchmarks.gpu_report.steps import measured
from benchmarks.gpu_report.subject import Subject
from benchmarks.quality import ForcedHits
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load
from models.tuning import AUTO
from pipelines.engine.request import Row
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.step_cache import FirstBlockRule, HitRule

_ENOUGH_FOR_TWO_MODELS = 100e9
CLIENTS = 8


def load_model(subject: Subject, row: Figures) -> None:
    runner = subject.runner
    row["parameters"] = sum(tensor.numel() for tensor in runner.components.transformer.parameters())
    row["notes"], row["memory"] = subject.notes, subject.accelerator.memory()


def alone(subject: Subject, runner: FluxRunner, name: str, row: Figures) -> None:
    """The large picture in all its steps and in four. Args: name: for the account of energy."""
    size, steps = subject.options.size, subject.options.steps
    row["first_s"] = subject.latencies(runner, size, 2, 1)
    with subject.power.window(f"{name}, {size} x {size}, {steps} steps, alone", 3):
        row["latencies_s"] = subject.latencies(runner, size, steps, 3)
    row["median_s"] = median(row["latencies_s"])
    row["four_steps_s"] = median(subject.latencies(runner, size, 4, 3))


def ours(subject: Subject, row: Figures) -> None:
    alone(subject, subject.runner, "bf16", row)
    size, steps = subject.options.size, min(subject.options.steps, 6)
    row["overhead"] = overhead(subject.runner, subject.accelerator, subject.params(size, steps))
    row["memory"] = subject.accelerator.memory()


def float8(subject: Subject, row: Figures) -> None:
    runner = FluxRunner(subject.float8, subject.accelerator, AUTO)
    alone(subject, runner, "float8", row)
    row |= measured(subject, runner, "fp8")


def stock(subject: Subject, row: Figures) -> None:
    """diffusers' FluxPipeline, the same requests."""
    size, steps = subject.options.size, subject.options.steps
    system = Stock(subject.plain)
    subject.accelerator.allow_split_k(True)  # as torch has it
    try:
        system.run(Source([Job(subject.params(size, 2))], 1))
        jobs = [Job(subject.params(size, steps, seed)) for seed in range(2)]
        row["latencies_s"] = [round(job.latency, 4) for job in system.run(Source(jobs, 1)).jobs]
    finally:
        subject.as_served()
    row["median_s"] = median(row["latencies_s"])


def small(subject: Subject, row: Figures) -> None:
    """Pictures of half the side from eight clients that each ask again as soon as they are answered."""
    side, system = subject.sides()[1], Ours(subject.runner, subject.accelerator)
    system.run(Source([Job(subject.params(side, 2, seed)) for seed in range(CLIENTS)], CLIENTS))
    for steps, count in ((subject.options.steps, 2 * CLIENTS), (4, 3 * CLIENTS)):
        jobs = [Job(subject.params(side, steps, seed)) for seed in range(count)]
        with subject.power.window(f"bf16, {side} x {side}, {steps} steps, {CLIENTS} clients", count):
            outcome = system.run(Source(jobs, CLIENTS))
        row[f"{side}_{steps}_steps_{CLIENTS}_clients_images_per_s"] = round(count / outcome.span_s, 4)


def energy(subject: Subject, row: Figures) -> None:
    row["windows"] = subject.power.windows


def caching(subject: Subject, row: Figures) -> None:
    """`acceleration: high`: steps skipped as random weights happen to have it, and in a forced pattern."""
    rules: dict[str, HitRule] = {"as the weights have it": FirstBlockRule(), "every second step": ForcedHits()}
    for name, components in {"float8": subject.float8, "bf16": subject.exact}.items():
        for how, rule in rules.items():
            runner = FluxRunner(components, subject.accelerator, AUTO, hit_rule=rule)
            skipped = _counting(runner)
            seconds = subject.latencies(runner, subject.options.size, subject.options.steps, 2, acceleration="high")
            row[f"{name}, {how}"] = {"latencies_s": seconds, "steps": len(skipped), "skipped": sum(skipped)}


def _counting(runner: FluxRunner) -> list[bool]:
    """Whether each step of each picture from now on was skipped; nothing is waited for."""
    skipped: list[bool] = []
    denoise = runner.denoise

    def counted(rows: Sequence[Row]) -> None:
        denoise(rows)
        skipped.extend(row.computed < 1 for row in rows)

    runner.denoise = counted  # type: ignore[method-assign]
    return skipped


def schnell(subject: Subject, row: Figures) -> None:
    """FLUX.1-schnell in four steps."""
    if subject.accelerator.memory()["total"] < _ENOUGH_FOR_TWO_MODELS:
        subject.forget("float8", "plain")
    spec = resolve("random:FLUX.1-schnell")
    exact = load(spec, subject.accelerator, tuning=AUTO)
    forms: dict[str, FluxComponents] = {"bf16": exact, "float8": subject.in_float8(exact)}
    for name, components in forms.items():
        row[f"{name}_latencies_s"] = _four_steps(subject, components)


def _four_steps(subject: Subject, components: FluxComponents) -> list[float]:
    spec, size = components.spec, subject.options.size
    changed: dict[str, Any] = {"model": spec.name, "max_sequence_length": spec.max_sequence_length}
    jobs = [Job(replace(subject.params(size, 4, seed), **changed)) for seed in range(4)]
    runner = FluxRunner(components, subject.accelerator, AUTO)
    return [round(job.latency, 4) for job in Ours(runner, subject.accelerator).run(Source(jobs, 1)).jobs]
