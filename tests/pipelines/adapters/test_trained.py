"""The embedded model's own adapters: a colour that it does not know, at a scale, in two layouts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.accelerator import CpuAccelerator
from models.loading import load
from models.registry import EMBEDDED_LORAS, REGISTRY
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import Adapter
from tests.acceptance.judging import distance_to
from tests.pipelines.driving import drain, make_params, pictures, submit

SPEC = REGISTRY["flux-shapes"]
TEAL = (0, 128, 128)
SEEDS = range(6)

Drawn = dict[tuple[str, float], list[np.ndarray]]


def draw(name: str, prompt: str) -> Drawn:
    """Six pictures by (file, scale), all in shared steps."""
    runner = FluxRunner(load(SPEC, CpuAccelerator()), CpuAccelerator(), adapters=AdapterCache(EMBEDDED_LORAS, 1 << 30))
    engine = Engine(lambda name: runner, CpuAccelerator())
    asked = [(name, 0.0), (name, 0.5), (name, 1.0), (f"{name}-kohya", 1.0)]
    for file, scale in asked:
        for seed in SEEDS:
            params = make_params(
                model=SPEC.name,
                prompt=prompt,
                width=256,
                height=256,
                num_inference_steps=12,
                seed=seed,
                adapters=(Adapter(f"{file}.safetensors", scale),),
            )
            submit(engine, f"{file} {scale} {seed}", params)
    frames = drain(engine)
    return {(file, scale): [pictures(frames, f"{file} {scale} {seed}")[0] for seed in SEEDS] for file, scale in asked}


@pytest.mark.skipif(
    not (EMBEDDED_LORAS / "teal.safetensors").is_file(),
    reason="no adapter of a new colour is shipped: the decoder knows twelve colours (models/shapes/README.md)",
)
def test_with_the_adapter_things_are_teal_without_they_are_not_and_half_of_it_lies_between() -> None:
    drawn = draw("teal", "a teal star on a white background")
    without, half, full = (
        [distance_to(TEAL, Image.fromarray(p)) for p in drawn["teal", scale]] for scale in (0.0, 0.5, 1.0)
    )
    assert np.median(full) < 40 < np.median(without), (full, without)
    assert np.median(full) < np.median(half) < np.median(without), (full, half, without)


def test_both_layouts_draw_the_same_and_less_than_without_in_lines() -> None:
    drawn = draw("outline", "a red circle on a white background")
    for a, b in zip(drawn["outline", 1.0], drawn["outline-kohya", 1.0], strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    full, half, without = (np.mean([covered(p) for p in drawn["outline", scale]]) for scale in (1.0, 0.5, 0.0))
    assert full < half < without, (full, half, without)
    assert full < 0.75 * without, (full, without)


def covered(picture: np.ndarray) -> float:
    """The share of a picture that is not its white ground."""
    return float((picture.astype(int).min(axis=2) < 128).mean())
