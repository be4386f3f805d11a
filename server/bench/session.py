"""One benchmark from start to end: open the target, warm up and measure every cell, close, hand back the report."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from models.counts import AnyArchitecture
from models.errors import LoadError
from models.flops import architecture_of
from models.registry import ModelSpec
from server.bench import power
from server.bench.ceilings import Ceiling, ceiling_of
from server.bench.driver import Run, measure, paced, warm_up
from server.bench.figures import row
from server.bench.scenarios import Cell, Plan
from server.bench.stamp import stamp
from server.bench.target import BenchError, Target, TargetFacts
from server.workers.nvml import NvmlError, open_nvml

FORMAT = "fluxserve bench 1"
"""Of the report. Another number means that older ones cannot be compared with it."""


class Watcher(Protocol):
    """Listens to how far the benchmark is."""

    def loading(self, stage: str, fraction: float) -> None: ...

    def done(self, cell: str, requests: int, of: int) -> None: ...

    def note(self, sentence: str) -> None:
        """Something the user should know about the figures."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. Args: label: the name in the report. spec: what to count by; None counts nothing."""

    target: str
    label: str
    spec: ModelSpec | None
    quantization: str = "none"
    tuning: str = ""


async def run(
    plan: Plan, subject: Subject, target: Target, warmup: int, peak_tflops: float | None, watcher: Watcher
) -> dict[str, Any]:
    """The whole report, as plain values. Raises: BenchError."""
    try:
        facts = await target.open(watcher.loading)
        ceiling = ceiling_of(facts.device_name, peak_tflops)
        arch = _architecture(subject, watcher)
        if arch is not None and ceiling is None:
            watcher.note(f"no share of the ceiling: none is known for {facts.device_name}, give --peak-tflops")
        nvml, handle = _card(facts, watcher)
        driver = power.driver_version(nvml) if nvml is not None else None
        rows = []
        for cell in plan.cells():
            rows.append(await _cell(plan, cell, subject, target, warmup, arch, ceiling, nvml, handle, watcher))
    finally:
        await target.close()
    return {
        "format": FORMAT,
        "scenario": plan.scenario,
        "target": subject.target,
        "model": subject.label,
        "quantization": subject.quantization,
        "tuning": subject.tuning,
        "device": asdict(facts),
        "ceiling": asdict(ceiling) if ceiling is not None else None,
        "plan": asdict(plan) | {"warmup": warmup},
        "environment": stamp(driver),
        "cells": rows,
        "notes": target.notes(),
    }


async def _cell(
    plan: Plan,
    cell: Cell,
    subject: Subject,
    target: Target,
    warmup: int,
    arch: AnyArchitecture | None,
    ceiling: Ceiling | None,
    nvml: Any,
    handle: Any,
    watcher: Watcher,
) -> dict[str, Any]:
    """One row: warm-up apart from what counts."""
    warmed = await warm_up(target, cell, warmup, lambda done, of: watcher.done(cell.name, done, of))
    cell = paced(cell, warmed, plan.seed)
    before = len(warmed)
    meter = power.PowerMeter(nvml, handle) if nvml is not None else None
    with meter or nullcontext():
        samples = await measure(target, cell, lambda done, of: watcher.done(cell.name, before + done, before + of))
    text_tokens = subject.spec.max_sequence_length if subject.spec is not None else 0
    figures = row(Run(cell, warmed, samples), arch, text_tokens, ceiling.tflops if ceiling is not None else None)
    if figures["failed"] == figures["requests"]:
        raise BenchError(f"{cell.name}: every request failed: {figures['errors'][0]}")
    figures["memory_bytes"] = await target.memory()
    if meter is not None:
        figures["power"] = meter.figures(figures["span_s"], figures["requests"] - figures["failed"])
    return figures


def _architecture(subject: Subject, watcher: Watcher) -> AnyArchitecture | None:
    if subject.spec is None:
        watcher.note("no TFLOP: give --model to say which architecture answers there")
        return None
    try:
        return architecture_of(subject.spec)
    except (LoadError, KeyError, OSError, ValueError) as exc:
        watcher.note(f"no TFLOP: the configuration of {subject.spec.name} cannot be read ({exc})")
        return None


def _card(facts: TargetFacts, watcher: Watcher) -> tuple[Any, Any]:
    """NVML and the card's handle; nothing for another kind of device, or one elsewhere."""
    if not facts.is_local or not (facts.device or "").startswith("cuda"):
        return None, None
    try:
        nvml = open_nvml()
        return nvml, power.card(nvml, str(facts.device))
    except NvmlError as exc:
        watcher.note(f"no power figures: {exc}")
        return None, None
