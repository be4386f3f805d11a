"""How long steps took and how many pictures shared each: counts by range, as Prometheus' histograms take them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

STEP_S = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
PICTURES = (1, 2, 4, 8, 16, 32, 64)
"""Upper ends of the ranges; one more holds what is beyond."""

Counts = dict[str, list[float]]
"""By the histogram's name: a count for every range, and last the sum of what was noted."""

BOUNDS: dict[str, Sequence[float]] = {"step_seconds": STEP_S, "step_pictures": PICTURES}


class StepTally:
    """The counts since the worker started."""

    def __init__(self) -> None:
        self._counts: Counts = {name: [0] * (len(bounds) + 2) for name, bounds in BOUNDS.items()}

    def note(self, seconds: float, pictures: int) -> None:
        """A step has ended."""
        for name, value in (("step_seconds", seconds), ("step_pictures", pictures)):
            counts = self._counts[name]
            counts[bisect_left(BOUNDS[name], value)] += 1
            counts[-1] += value

    def counts(self) -> Counts:
        """A copy, for a heartbeat."""
        return {name: list(counts) for name, counts in self._counts.items()}


def cumulative(name: str, counts: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' buckets (upper end, how many up to it) and the sum."""
    ends = [*(f"{bound:g}" for bound in BOUNDS[name]), "+Inf"]
    totals = [sum(counts[: index + 1]) for index in range(len(ends))]
    return list(zip(ends, totals, strict=True)), counts[-1]
