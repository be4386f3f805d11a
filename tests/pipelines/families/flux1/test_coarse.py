"""Coarse first steps: the arithmetic between the two sizes, and a request drawn so from end to end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from models.accelerator import CpuAccelerator
from pipelines.engine.acceleration import AccelerationChoice
from pipelines.engine.request import Row
from pipelines.families.flow import add_noise
from pipelines.families.flux1.coarse import Enlargement, coarse_levels
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.sampling import flow_match_sigmas
from pipelines.protocol.conditions import Coarse
from pipelines.protocol.frames import Preview, Progress
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit

SIZES = [((4, 6), (8, 12)), ((4, 4), (6, 10)), ((2, 2), (2, 4))]
"""Small and large, in latent cells: half the sides, odd numbers of tokens, and hardly anything to halve."""
LARGE = {"width": 96, "height": 64, "num_inference_steps": 10}


def coarse(params: GenerationParams) -> AccelerationChoice:
    return AccelerationChoice(params.model, is_coarse=True)


def between(sizes: tuple[tuple[int, int], tuple[int, int]], level: float = 0.7) -> Enlargement:
    return Enlargement.between(*sizes, level, CpuAccelerator())


def noise(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """(tokens, 8) packed."""
    return torch.randn(size[0] * size[1] // 4, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_enlarged_is_the_full_picture_at_its_own_noise_level(
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    small, level = noise(sizes[0], 1), torch.tensor(0.7)
    enlargement, full_noise = between(sizes), noise(sizes[1], 2)
    at_half = add_noise(small, enlargement.shrink(full_noise), coarse_levels(level, enlargement.ratio))
    wanted = add_noise(enlargement.enlarge_picture(small), full_noise, level)
    assert torch.allclose(enlargement.enlarge(at_half, full_noise), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_shrunk_noise_is_white(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    enlargement = between(sizes)
    for matrix in enlargement.tensors:
        assert torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]), atol=1e-6)
    assert enlargement.shrink(noise(sizes[1])).shape == noise(sizes[0]).shape


def test_an_even_picture_stays_as_bright() -> None:
    enlargement = between(SIZES[0])
    assert torch.allclose(enlargement.enlarge_picture(torch.full((6, 8), 0.3)), torch.full((24, 8), 0.3), atol=1e-6)


def test_levels_at_half_the_sides_are_lower_and_begin_with_noise_alone() -> None:
    sigmas = torch.tensor([1.0, 0.8, 0.5])
    assert coarse_levels(sigmas, 2.0).tolist() == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert torch.equal(coarse_levels(sigmas, 1.0), sigmas)


def test_the_first_steps_have_a_quarter_of_the_tokens_and_the_schedule_is_kept(
    runner: FluxRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    denoise = runner.denoise

    def watched(rows: Sequence[Row]) -> None:
        tokens.extend(row.tokens for row in rows)
        denoise(rows)

    monkeypatch.setattr(runner, "denoise", watched)
    params = make_params(**LARGE)
    text, full = runner.limits.text_tokens(params), runner.limits.tokens(params)
    engine = make_engine(runner, choose_acceleration=coarse)
    submit(engine, "a", params)
    frames = drain(engine)
    image = full - text
    assert tokens == [text + image // 4] * 4 + [full] * 6
    progress = [frame for frame in frames if isinstance(frame, Progress)]
    assert [(frame.step, frame.num_steps) for frame in progress] == [(n, 10) for n in range(1, 11)]
    assert pictures(frames, "a")[0].shape == (64, 96, 3)


def test_the_fine_steps_are_those_of_the_full_schedule(runner: FluxRunner) -> None:
    params = make_params(**LARGE, conditions=(Coarse(),))
    levels = runner._admitter._levels(params)
    cells = 96 * 64 // runner.limits.size_multiple**2
    sigmas = flow_match_sigmas(runner.components.sigma_config, 10, cells)
    assert levels[1].tolist() == sigmas[4:].tolist()
    assert torch.allclose(levels[0], coarse_levels(sigmas[:5], 2.0))


def test_a_preview_follows_every_step_and_shows_the_same_before_and_after(runner: FluxRunner) -> None:
    engine = make_engine(runner, choose_acceleration=coarse)
    submit(engine, "a", make_params(**LARGE, preview_every=1))
    previews = [frame for frame in drain(engine) if isinstance(frame, Preview)]
    cells = 96 * 2 // runner.limits.size_multiple
    widths = [cells // 2] * 3 + [cells] * 6
    assert [(frame.step, frame.width) for frame in previews] == list(enumerate(widths, 1))
    small, large = (np.frombuffer(frame.pixels, np.uint8).mean() for frame in previews[2:4])
    assert abs(small - large) < 25


def test_one_step_is_never_coarse(runner: FluxRunner) -> None:
    engine = make_engine(runner, choose_acceleration=coarse)
    submit(engine, "a", make_params(**(LARGE | {"num_inference_steps": 1})))
    plain = make_engine(runner)
    submit(plain, "a", make_params(**(LARGE | {"num_inference_steps": 1})))
    assert np.array_equal(pictures(drain(engine), "a")[0], pictures(drain(plain), "a")[0])
