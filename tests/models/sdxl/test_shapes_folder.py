"""The committed sdxl-shapes in the stock pipeline, with both schedules: it draws what held-out prompts ask for."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusionXLPipeline

from models.registry import REGISTRY
from models.shapes.evaluate_siblings import open_pipeline
from models.shapes.export import size_of
from models.shapes.sdxl.evaluate import FOLDER, drawing_rates

LIGHTNING = FOLDER.with_name(f"{FOLDER.name}-lightning")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:`torch_dtype` is deprecated:FutureWarning"
)


def test_it_is_small_and_served_without_a_flag() -> None:
    assert size_of(FOLDER) < 14_000_000
    assert size_of(LIGHTNING) < 10_000, "all but the schedule is the other folder's"
    for folder in (FOLDER, LIGHTNING):
        assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors"}
        assert REGISTRY[folder.name].base == "flux-shapes"


@pytest.mark.parametrize(
    ("folder", "steps", "guidance"), [(FOLDER, 12, 3.0), (LIGHTNING, 4, 0.0)], ids=["edm", "lightning"]
)
def test_held_out_prompts_come_out_as_asked(folder: object, steps: int, guidance: float) -> None:
    found = drawing_rates(open_pipeline(StableDiffusionXLPipeline, folder), 10, 512, steps, guidance)  # type: ignore[arg-type]
    assert found["ground"] >= 90
    assert found["colour"] >= 90
    assert found["shape"] >= 75
    assert found["count"] >= 90
    assert found["place"] >= 85
