"""From samples to the figures of one row: latencies, rates, and arithmetic against the device's ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from models.counts import AnyArchitecture
from models.flops import request_flops
from server.bench.driver import Run, Sample
from server.bench.scenarios import Ask

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, extremes and percentiles."""
    figures = {"mean": fmean(values), "min": min(values), "max": max(values)}
    return figures | {name: percentile(values, share) for name, share in PERCENTILES.items()}


def row(run: Run, arch: AnyArchitecture | None, text_tokens: int, ceiling_tflops: float | None) -> dict[str, Any]:
    """The figures of one cell; without a single picture there are only counts.

    Args: ceiling_tflops: what the device does at best; None if that is not known.
    """
    good = [sample for sample in run.samples if sample.error is None]
    figures: dict[str, Any] = {
        "name": run.cell.name,
        "clients": run.cell.clients,
        "rate": run.cell.rate,
        "requests": len(run.samples),
        "failed": len(run.samples) - len(good),
        "errors": sorted({sample.error for sample in run.samples if sample.error is not None})[:5],
        "warmup_s": list(run.warmup_s),
    }
    if not good:
        return figures
    # From the first moment due to the last picture: what an open loop waits for at its start is no one's time.
    span_s = max(sample.done_s for sample in good) - min(sample.due_s for sample in run.samples)
    figures |= {
        "span_s": span_s,
        "images_per_s": len(good) / span_s,
        "latency_s": spread([sample.latency_s for sample in good]),
        "stages_s": _stages(good),
        "generator_lag_s": spread([sample.sent_s - sample.due_s for sample in run.samples]),
        "samples": [_compact(sample) for sample in run.samples],
    }
    return figures if arch is None else figures | _arithmetic(good, arch, text_tokens, span_s, ceiling_tflops)


def _stages(good: Sequence[Sample]) -> dict[str, float]:
    """Medians by stage, of the stages that every request has."""
    names = set.intersection(*(set(sample.stages) for sample in good))
    return {name: median(sample.stages[name] for sample in good) for name in sorted(names)}


def _compact(sample: Sample) -> dict[str, Any]:
    ask = sample.ask
    values = {"width": ask.width, "height": ask.height, "steps": ask.steps, "error": sample.error}
    times = {"due_s": sample.due_s, "sent_s": sample.sent_s, "done_s": sample.done_s}
    return values | {name: round(moment, 6) for name, moment in times.items()}


def _arithmetic(
    good: Sequence[Sample], arch: AnyArchitecture, text_tokens: int, span_s: float, ceiling_tflops: float | None
) -> dict[str, Any]:
    """Counted work, how fast it was done over the whole span, and how long it would take at the ceiling."""
    work = [tflop(sample.ask, arch, text_tokens) for sample in good]
    achieved = sum(work) / span_s
    figures: dict[str, Any] = {"tflop_per_image": fmean(work), "achieved_tflops": achieved}
    if ceiling_tflops is None:
        return figures
    floor = {"floor_s": fmean(work) / ceiling_tflops, "share_of_ceiling": achieved / ceiling_tflops}
    return figures | floor


def tflop(ask: Ask, arch: AnyArchitecture, text_tokens: int) -> float:
    """10^12 operations of one request."""
    return request_flops(arch, ask.width, ask.height, ask.steps, text_tokens).total / 1e12
