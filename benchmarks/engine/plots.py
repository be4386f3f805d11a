"""The picture of a report: how long requests took, and how many kept their limit at what load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine.open_loop import Outcomes
from benchmarks.engine.systems import Alone, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colours = dict[str, str]
LIMIT = 3.0
SCALES = [1.0 + 0.1 * step for step in range(91)]


def plot(outcomes: Outcomes, alone: Alone, file: Path, title: str) -> None:
    """Latencies above and attainment by limit below, a panel a load; last, attainment by load.

    Source of the lower two: the figures of AlpaServe, Li et al. 2023.
    """
    import matplotlib

    matplotlib.use("Agg")
    figure = drawn(outcomes, alone, title)
    figure.savefig(file, dpi=110)


def drawn(outcomes: Outcomes, alone: Alone, title: str) -> Figure:
    """The same, not yet written. A system has one colour in every panel, though not every load has met every system."""
    from matplotlib import pyplot

    shares = sorted({share for share, _ in outcomes})
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(name for _, name in outcomes))}
    figure, axes = pyplot.subplots(2, len(shares) + 1, figsize=(4.2 * len(shares) + 4.2, 7.5), squeeze=False)
    for column, share in enumerate(shares):
        here = {name: outcome for (at, name), outcome in outcomes.items() if at == share}
        _latencies(axes[0][column], here, colours)
        axes[0][column].set_title(f"{share:.0%} of stock capacity")
        _limits(axes[1][column], here, alone, colours)
    axes[0][0].set_ylabel("share of requests")
    axes[1][0].set_ylabel("share of requests within the limit")
    _loads(axes[1][-1], outcomes, alone, colours)
    axes[0][-1].axis("off")
    axes[0][-1].legend(*axes[1][-1].get_legend_handles_labels(), loc="center")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def _latencies(axis: Any, outcomes: dict[str, Outcome], colours: Colours) -> None:
    for name, outcome in outcomes.items():
        latencies = sorted(job.latency for job in outcome.jobs)
        answered = [(i + 1) / len(latencies) for i in range(len(latencies))]
        axis.step(latencies, answered, label=name, color=colours[name], where="post")
    axis.set(xlabel="seconds to the picture", xscale="log", ylim=(0, 1.02))
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)


def _limits(axis: Any, outcomes: dict[str, Outcome], alone: Alone, colours: Colours) -> None:
    for name, outcome in outcomes.items():
        kept = [outcome.attainment(alone, scale) for scale in SCALES]
        axis.plot(SCALES, kept, label=name, color=colours[name])
    axis.axvline(LIMIT, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="limit, in times of the request alone", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def _loads(axis: Any, outcomes: Outcomes, alone: Alone, colours: Colours) -> None:
    for name, colour in colours.items():
        mine = [(share, outcome) for (share, of), outcome in sorted(outcomes.items()) if of == name]
        kept = [each.attainment(alone, LIMIT) for _, each in mine]
        axis.plot([share for share, _ in mine], kept, "o-", label=name, color=colour)
    axis.set(xlabel="load, as a share of stock capacity", title=f"within {LIMIT:g} x alone", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
