"""What is told of the figures that have goals."""

from __future__ import annotations

from benchmarks.promises import GOALS, promises, rows

FIGURES = {
    "0.8": {
        "stock": {"mean_s": 4.0, "p99_s": 9.0, "within_3x": 0.5},
        "samesize": {"mean_s": 2.0, "p99_s": 4.0, "within_3x": 0.8},
        "engine": {"mean_s": 1.0, "p99_s": 5.0, "within_3x": 0.99},
    },
    "0.95": {"keyed": {"within_3x": 0.4}, "engine": {"within_3x": 0.9}},
}


def test_each_figure_stands_beside_its_goal() -> None:
    measured = promises(FIGURES, 0.02)
    assert list(measured.values()) == [0.99, 0.5, 1.25, 0.5, 0.25, 0.02]
    kept = {row["figure"]: row["kept"] for row in rows(measured)}
    assert kept.keys() == GOALS.keys()
    assert [name for name, is_kept in kept.items() if is_kept == "no"] == ["p99 at 80 %, of same-size step batching's"]
