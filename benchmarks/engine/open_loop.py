"""Requests at their own times through every system, a line of figures each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.engine.load import Job
from benchmarks.engine.systems import LIMITS, Alone, Ours, Outcome, Source, Stock, within

Systems = dict[str, Stock | Ours]
Figures = dict[str, dict[str, float]]
"""Of one regime, by system."""
Outcomes = dict[tuple[float, str], Outcome]
"""By load and system."""


def run_open(
    systems: Systems, timed: Mapping[float, Sequence[Job]], alone: Alone, name: str, outcomes: Outcomes
) -> dict[str, Figures]:
    """Requests at their own times, by share of what `stock` can do. Args: outcomes: gets what every system did."""
    report: dict[str, Figures] = {}
    for share, jobs in timed.items():
        row = report.setdefault(str(share), {})
        for system_name, system in systems.items():
            outcome = system.run(Source([Job(job.params, job.arrival) for job in jobs], None))
            outcomes[share, system_name] = outcome
            row[system_name] = outcome.figures(alone)
            print_row(f"{name}, {share:.0%}", system_name, row[system_name])
    return report


def print_row(regime: str, name: str, figures: dict[str, float]) -> None:
    """One system's figures in one regime."""
    print(
        f"{regime:18} {name:9} {figures['images_per_s']:7.3f} images/s   mean {figures['mean_s']:7.2f} s   "
        f"p50 {figures['p50_s']:6.2f}   p95 {figures['p95_s']:6.2f}   p99 {figures['p99_s']:6.2f}   "
        f"4 steps p95 {figures['p95_4_steps_s']:6.2f}   slowdown {figures['slowdown']:6.2f}   "
        f"within {' / '.join(f'{limit:g}' for limit in LIMITS)} x alone "
        f"{' / '.join(f'{figures[within(limit)]:.1%}' for limit in LIMITS)}   busy {figures['busy']:.0%}",
        flush=True,
    )
