"""First-block caching: its rule, its arithmetic against diffusers' own hook, and that neighbours do not matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from diffusers import FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from pipelines.engine.request import Request, Row
from pipelines.families.flux1.conditioning import state_of
from pipelines.families.flux1.reference import reference_pictures
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.step_cache import FirstBlockRule, HitRule
from pipelines.protocol.frames import Cancel
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit

TOLERANCE = 1
"""As in test_parity.py."""


@dataclass
class Watched:
    """A runner that notes for every step which of its rows skipped."""

    runner: FluxRunner
    steps: list[dict[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        denoise = self.runner.denoise

        def watched(rows: Sequence[Row]) -> None:
            denoise(rows)
            self.steps.append({row.request.job_id: row.computed < 1 for row in rows})

        self.runner.denoise = watched  # type: ignore[method-assign]

    def hits(self, job_id: str) -> list[bool]:
        return [step[job_id] for step in self.steps if job_id in step]


class Everything(FirstBlockRule):
    """Every step may skip: what diffusers' hook does."""

    def may_hit(self, step: int, num_steps: int, hits_in_row: int) -> bool:
        return True


class Alternating(FirstBlockRule):
    """Skips every second step, whatever changed."""

    def is_hit(self, step: int, change: float) -> bool:
        return step % 2 == 1


def watch(components: FluxComponents, rule: HitRule | None = None) -> Watched:
    return Watched(FluxRunner(components, CpuAccelerator(), hit_rule=rule))


def high(**changes: object) -> GenerationParams:
    return make_params(**({"acceleration": "high", "num_inference_steps": 12} | changes))


@pytest.mark.parametrize("threshold", [0.1, 0.6, 0.9])
def test_a_lone_request_equals_diffusers_first_block_cache_bit_for_bit(
    components: FluxComponents, threshold: float
) -> None:
    params = high()
    watched = watch(components, Everything(threshold=threshold))
    (ours,) = alone(watched.runner, params)
    # Not a copy: a transformer that a pipeline has called keeps a stale list of its hooks, and copies take it along.
    fresh = FluxTransformer2DModel.from_config(components.transformer.config).eval()
    fresh.load_state_dict(components.transformer.state_dict())
    hooked = replace(components, transformer=fresh)
    apply_first_block_cache(hooked.transformer, FirstBlockCacheConfig(threshold=threshold))
    with hooked.transformer.cache_context("all"):
        (theirs,) = reference_pictures(hooked, params)
    assert np.array_equal(ours, theirs)
    assert any(watched.hits("a")) == (threshold > 0.1)


def test_nothing_skips_in_the_first_fifth_at_the_end_or_more_than_three_times_in_a_row(
    components: FluxComponents,
) -> None:
    watched = watch(components, FirstBlockRule(threshold=math.inf))
    alone(watched.runner, high(num_inference_steps=12))
    computed, skipped = False, True
    assert watched.hits("a") == [
        *[computed] * 3,
        *[skipped] * 3,
        computed,
        *[skipped] * 3,
        computed,
        computed,
    ]


def test_a_change_that_is_no_number_never_skips() -> None:
    assert not FirstBlockRule(threshold=math.inf).is_hit(5, math.nan)


def test_a_request_that_never_skips_is_exact(components: FluxComponents, runner: FluxRunner) -> None:
    watched = watch(components, FirstBlockRule(threshold=-1.0))
    assert np.array_equal(alone(watched.runner, high())[0], alone(runner, high(acceleration="none"))[0])
    assert not any(watched.hits("a"))


@pytest.mark.parametrize("acceleration", ["none", "regular"])
def test_without_a_cache_nothing_is_decided(
    components: FluxComponents, monkeypatch: pytest.MonkeyPatch, acceleration: str
) -> None:
    monkeypatch.setattr("pipelines.families.flux1.runner.cached_forward", None)
    watched = watch(components)
    alone(watched.runner, high(acceleration=acceleration))
    assert len(watched.hits("a")) == 12


STRANGERS = [
    {"width": 64, "height": 64, "num_inference_steps": 9, "seed": 1, "prompt": "blue"},
    {"width": 16, "height": 8, "num_inference_steps": 20, "seed": 2, "acceleration": "none"},
    {"width": 48, "height": 32, "num_inference_steps": 14, "seed": 3},
    {"width": 96, "height": 24, "num_inference_steps": 6, "seed": 4, "acceleration": "none"},
    {"width": 8, "height": 8, "num_inference_steps": 9, "seed": 5, "num_images": 2},
]


@pytest.mark.parametrize("rule", [FirstBlockRule(threshold=0.8), Alternating()], ids=["measured", "forced"])
@pytest.mark.parametrize("late", [0, 5])
def test_neighbours_change_neither_decisions_nor_pictures(components: FluxComponents, rule: HitRule, late: int) -> None:
    lone, crowded = watch(components, rule), watch(components, rule)
    expected = lockstep(lone.runner, {"a": high()})["a"]
    found = lockstep(
        crowded.runner,
        {"a": high()} | {f"s{index}": high(**changes) for index, changes in enumerate(STRANGERS)},
        starts={"a": late, "s1": 3},
    )["a"]
    assert crowded.hits("a") == lone.hits("a")
    assert {True, False} == set(lone.hits("a"))
    assert any(step["a"] and not all(step.values()) for step in crowded.steps if "a" in step), "all skipped together"
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_exact_neighbours_stay_exact(components: FluxComponents, runner: FluxRunner) -> None:
    exact = high(acceleration="none")
    expected = lockstep(runner, {"a": exact})["a"]
    crowded = watch(components, Alternating())
    found = lockstep(crowded.runner, {"a": exact, "fast": high(seed=5)})["a"]
    assert any(crowded.hits("fast"))
    assert not any(crowded.hits("a"))
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("fault", [3, 4], ids=["skipping", "computing"])
def test_a_step_that_fails_leaves_the_caches_as_they_were(
    components: FluxComponents, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    watched = watch(components, Alternating())
    (expected,) = alone(watched.runner, high())
    engine = make_engine(watched.runner)
    submit(engine, "a", high())
    submit(engine, "b", high(seed=8))
    output, calls = components.transformer.proj_out.forward, itertools.count()

    def failing(*arguments: object) -> object:
        if next(calls) == fault:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return output(*arguments)

    monkeypatch.setattr(components.transformer.proj_out, "forward", failing)
    assert distance(pictures(drain(engine), "a")[0], expected) <= TOLERANCE


def test_a_cache_goes_with_the_last_step(components: FluxComponents) -> None:
    held: list[int] = []
    watched = watch(components)
    engine = make_engine(watched.runner)
    submit(engine, "a", high())
    (row,) = engine.scheduler.plan(0.0)

    def look(step: int) -> None:
        cache = state_of(row).cache
        if cache is not None and cache.first is not None:
            held.append(cache.first.untyped_storage().nbytes())

    drain(engine, look)
    tokens = 48 * 32 // components.size_multiple**2
    assert len(held) >= 10
    assert state_of(row).cache is None
    assert set(held) == {tokens * components.transformer.inner_dim * 4}


def test_a_cancelled_request_gives_its_cache_back(components: FluxComponents) -> None:
    engine = make_engine(watch(components).runner)
    submit(engine, "a", high())
    (row,) = engine.scheduler.plan(0.0)
    engine.step()
    engine.step()
    assert state_of(row).cache is not None
    engine.abort(Cancel("a", 1))
    assert row.state is None
    drain(engine)


def lockstep(
    runner: FluxRunner, wanted: Mapping[str, GenerationParams], starts: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Run every request's rows together, each from its own start on. Returns: the final latents of its first row.

    The engine packs by measured time; here every step holds all that can step.
    """
    requests = {name: Request(name, 1, params, params.model, 1, 0.0) for name, params in wanted.items()}
    for request in requests.values():
        request.caches_steps = request.params.acceleration == "high"
        admission = runner.admit(request).result()
        request.conditioning = admission.conditioning
        for row, latents in zip(request.rows, admission.latents, strict=True):
            row.latents = latents
    for tick in itertools.count():
        begun = [request for name, request in requests.items() if (starts or {}).get(name, 0) <= tick]
        rows = [row for request in begun for row in request.rows if row.steps_left]
        if not rows and len(begun) == len(requests):
            break
        runner.denoise(rows)
        for row in rows:
            row.steps_left -= 1
    return {name: latents for name, request in requests.items() if (latents := request.rows[0].latents) is not None}


def alone(runner: FluxRunner, params: GenerationParams) -> list[np.ndarray]:
    engine = make_engine(runner)
    submit(engine, "a", params)
    return pictures(drain(engine), "a")


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
