"""Two pictures of a report: how many requests were answered within a time, and how the latency went over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class NoPlotsError(Exception):
    """There is nothing to draw with; the message says how to get it."""


def plot(report: Mapping[str, Any], file: Path) -> None:
    """Write a PNG. Raises: NoPlotsError, OSError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise NoPlotsError("no plots: matplotlib is not installed (pip install matplotlib)") from exc
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    shares, course = figure.subplots(1, 2)
    for row in report["cells"]:
        good = sorted(_times(row))
        latencies = sorted(latency for _, latency in good)
        shares.step(
            latencies, [(i + 1) / len(latencies) for i in range(len(latencies))], where="post", label=row["name"]
        )
        course.plot(*zip(*good, strict=True), ".-", linewidth=0.5, label=row["name"])
    shares.set(xlabel="seconds to the picture", ylabel="share of requests", ylim=(0, 1.02))
    course.set(xlabel="seconds since the start of the row", ylabel="seconds to the picture", ylim=(0, None))
    for axis in (shares, course):
        axis.grid(alpha=0.3)
    shares.legend(fontsize="small")
    figure.suptitle(f"{report['scenario']}: {report['model']} through the {report['target']}")
    figure.savefig(file, dpi=120)


def _times(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(due, latency) in seconds of every picture."""
    return [(one["due_s"], one["done_s"] - one["due_s"]) for one in row["samples"] if one["error"] is None]
