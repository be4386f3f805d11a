"""The picture of a report: how long requests took, and how many kept their limit at what load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.systems import Alone, Outcome

LIMIT = 3.0
SCALES = [1.0 + 0.1 * step for step in range(91)]
Outcomes = dict[tuple[float, str], Outcome]
"""By load and system."""


def plot(outcomes: Outcomes, alone: Alone, file: Path, title: str) -> None:
    """Latencies above and attainment by limit below, a panel a load; last, attainment by load.

    Source of the lower two: the figures of AlpaServe, Li et al. 2023.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = sorted({share for share, _ in outcomes})
    figure, axes = pyplot.subplots(2, len(shares) + 1, figsize=(4.2 * len(shares) + 4.2, 7.5), squeeze=False)
    for column, share in enumerate(shares):
        here = {name: outcome for (at, name), outcome in outcomes.items() if at == share}
        _latencies(axes[0][column], here)
        axes[0][column].set_title(f"{share:.0%} of stock capacity")
        _limits(axes[1][column], here, alone)
    axes[0][0].set_ylabel("share of requests")
    axes[1][0].set_ylabel("share of requests within the limit")
    axes[0][-1].axis("off")
    axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), loc="center")
    _loads(axes[1][-1], outcomes, alone)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _latencies(axis: Any, outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        latencies = sorted(job.latency for job in outcome.jobs)
        axis.step(latencies, [(i + 1) / len(latencies) for i in range(len(latencies))], label=name, where="post")
    axis.set(xlabel="seconds to the picture", xscale="log", ylim=(0, 1.02))
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)


def _limits(axis: Any, outcomes: dict[str, Outcome], alone: Alone) -> None:
    for name, outcome in outcomes.items():
        axis.plot(SCALES, [outcome.attainment(alone, scale) for scale in SCALES], label=name)
    axis.axvline(LIMIT, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="limit, in times of the request alone", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def _loads(axis: Any, outcomes: Outcomes, alone: Alone) -> None:
    for name in dict.fromkeys(name for _, name in outcomes):
        mine = [(share, outcome) for (share, of), outcome in sorted(outcomes.items()) if of == name]
        axis.plot([share for share, _ in mine], [each.attainment(alone, LIMIT) for _, each in mine], "o-", label=name)
    axis.set(xlabel="load, as a share of stock capacity", title=f"within {LIMIT:g} x alone", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
