"""The cost model learns what a step takes."""

from __future__ import annotations

import random

import pytest

from pipelines.engine.cost import PRIOR, CostModel

MIXES = [[500], [1500, 1500], [4608], [700, 300, 300], [2816, 500]]


def truth(lengths: list[int]) -> float:
    return 6.0 + 0.016 * sum(lengths) + 1.2e-6 * sum(n * n for n in lengths)


def test_it_learns_all_three_terms_from_noisy_steps() -> None:
    rng = random.Random(1)
    cost = CostModel()
    for _ in range(200):
        lengths = rng.choice(MIXES)
        cost.observe(lengths, truth(lengths) * rng.uniform(0.97, 1.03))
    for lengths in ([250], [9000], [1000] * 8):
        assert cost.predict(lengths) == pytest.approx(truth(lengths), rel=0.1)


def test_one_composition_is_enough_for_that_composition() -> None:
    cost = CostModel()
    for _ in range(5):
        cost.observe([224], 0.8)
    assert cost.predict([224]) == pytest.approx(0.8, rel=0.05)


def test_coefficients_are_never_negative() -> None:
    cost = CostModel()
    for lengths, ms in (([100], 50.0), ([200], 40.0), ([4000], 30.0)) * 10:
        cost.observe(lengths, ms)
    assert cost.fixed_ms >= 0
    assert cost.row_ms(1) >= 0
    assert cost.row_ms(100_000) >= 0


def test_it_follows_a_device_that_becomes_slower() -> None:
    cost = CostModel()
    for factor in (1, 3):
        for _ in range(40):
            for lengths in MIXES:
                cost.observe(lengths, factor * truth(lengths))
    assert cost.predict([1500, 1500]) == pytest.approx(3 * truth([1500, 1500]), rel=0.1)


def test_one_outlier_moves_little() -> None:
    cost = CostModel()
    for _ in range(40):
        for lengths in MIXES:
            cost.observe(lengths, truth(lengths))
    cost.observe([500], 1000 * truth([500]))
    for lengths in MIXES * 3:
        cost.observe(lengths, truth(lengths))
    assert cost.predict([500]) == pytest.approx(truth([500]), rel=0.25)


def test_before_the_first_step_it_answers_the_prior() -> None:
    assert CostModel().predict([1000]) == pytest.approx(sum(PRIOR))


def test_spared_blocks_do_not_make_a_full_step_look_cheaper() -> None:
    rng = random.Random(2)
    spared, cost = 1 / 57, CostModel()
    for _ in range(300):
        lengths = rng.choice(MIXES)
        computed = [rng.choice([1.0, spared]) for _ in lengths]
        if max(computed) == 1:
            work = [(share * n, share * n * n) for share, n in zip(computed, lengths, strict=True)]
            ms = 6.0 + 0.016 * sum(linear for linear, _ in work) + 1.2e-6 * sum(square for _, square in work)
        else:
            ms = 0.5  # next to nothing but launches
        cost.observe(lengths, ms, computed)
    for lengths in MIXES:
        assert cost.predict(lengths) == pytest.approx(truth(lengths), rel=0.05)
