from __future__ import annotations

from benchmarks.engine.load import make_jobs
from benchmarks.engine.plots import drawn
from benchmarks.engine.systems import Outcome


def test_a_system_has_one_colour_though_not_every_load_has_met_it() -> None:
    jobs = make_jobs(4, 1, "flux-shapes")
    for job in jobs:
        job.done = 1.0
    outcomes = {(0.8, name): Outcome(jobs) for name in ("stock", "keyed", "engine")}
    outcomes |= {(0.95, name): Outcome(jobs) for name in ("keyed", "engine")}
    panels = drawn(outcomes, lambda params: 1.0, "a title").axes
    seen = {(str(line.get_label()), str(line.get_color())) for panel in panels for line in panel.get_lines()}
    systems = {each for each in seen if not each[0].startswith("_")}
    assert sorted(name for name, _ in systems) == ["engine", "keyed", "stock"]
    assert len({colour for _, colour in systems}) == 3
