"""What is drawn before a model is ready, and what comes of its failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from models.components import FluxComponents
from models.errors import LoadError
from models.registry import TINY, Variant
from pipelines.engine.request import Row
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.worker.warmup import sizes_to_warm, warm_up
from server.api.schemas.sizes import PRESETS
from tests.pipelines.doubles import FakeRunner
from tests.pipelines.driving import make_engine
from tests.pipelines.families.flux1.families import run_on, variant_of

LIMITS = Flux1Limits(size_multiple=16, max_pixels=1024 * 1024, max_sequence_length=512)
SIZES = ((64, 64), (48, 64), (32, 32))


def test_an_accelerator_draws_every_preset_and_a_cpu_next_to_nothing() -> None:
    presets = tuple(PRESETS.values())
    assert sizes_to_warm("auto", "cuda", LIMITS, presets) == presets
    assert sizes_to_warm("full", "cpu", LIMITS, presets) == presets
    assert sizes_to_warm("auto", "cpu", LIMITS, presets) == ((16, 16),)
    assert sizes_to_warm("none", "cuda", LIMITS, presets) == ()
    small = Flux1Limits(16, 512 * 512, 512)
    assert sizes_to_warm("full", "cuda", small, presets) == ((512, 512),)


def test_the_serving_engine_learns_from_the_second_round_only() -> None:
    runner, seen = FakeRunner(), []
    throw_away, serving = make_engine(runner), make_engine(runner)
    assert warm_up([throw_away, serving], TINY, SIZES, lambda done, total: seen.append((done, total))) == []
    assert seen == [(k, 6) for k in range(7)]
    assert len(runner.steps) == 6
    assert (throw_away.scheduler.cost.observations, serving.scheduler.cost.observations) == (3, 3)
    assert not serving.has_work


def test_weights_of_their_own_are_warmed_up_by_a_level_that_uses_them() -> None:
    runner, drawn = FakeRunner(), []
    runner.on_denoise = lambda rows: drawn.append((rows[0].request.params.width, rows[0].request.params.acceleration))
    assert warm_up([make_engine(runner)], TINY, SIZES[:2], lambda done, total: None, ("none", "regular")) == []
    assert drawn == [(64, "none"), (48, "none"), (64, "regular"), (48, "regular")]


def test_a_size_that_does_not_fit_is_named_once_and_not_tried_again() -> None:
    runner, tried = FakeRunner(), []

    def refuse_large(rows: Sequence[Row]) -> None:
        tried.append(rows[0].request.params.width)
        if tried[-1] == 64:
            raise MemoryError

    runner.on_denoise = refuse_large
    (sentence,) = warm_up([make_engine(runner), make_engine(runner)], TINY, SIZES, lambda done, total: None)
    assert "64 x 64" in sentence
    assert "memory" in sentence
    assert tried == [64, 48, 32, 48, 32]


@pytest.mark.parametrize(("error", "words"), [(MemoryError(), "--offload"), (TypeError(), "TypeError")])
def test_a_model_that_can_draw_nothing_is_not_ready(error: Exception, words: str) -> None:
    runner = FakeRunner()

    def refuse(rows: Sequence[Row]) -> None:
        raise error

    runner.on_denoise = refuse
    with pytest.raises(LoadError, match=words):
        warm_up([make_engine(runner)], TINY, SIZES, lambda done, total: None)


def test_a_decode_that_fails_counts_as_well() -> None:
    runner = FakeRunner()

    def refuse(row: Row) -> None:
        raise MemoryError

    runner.on_decode = refuse
    with pytest.raises(LoadError, match="memory"):
        warm_up([make_engine(runner)], TINY, SIZES, lambda done, total: None)


@pytest.mark.parametrize(("variant", "channels"), [("fill", 16 + 64), ("canny", 16), ("depth", 16), ("kontext", 0)])
def test_a_model_that_needs_pictures_is_warmed_up_with_black_ones(
    components: FluxComponents, variant: Variant, channels: int
) -> None:
    loaded = variant_of(components, variant, channels)
    spec = replace(loaded.spec, name=TINY.name)
    assert warm_up([make_engine(run_on(loaded))], spec, [(16, 16)], lambda done, total: None) == []
