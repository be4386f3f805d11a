"""The committed flux2-shapes in the stock pipeline: it draws what held-out prompts ask for, and edits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.registry import REGISTRY
from models.shapes.evaluate_siblings import drawn, generated
from models.shapes.export import size_of
from models.shapes.flux2.evaluate import FOLDER, drawing_rates, edit_rates, open_pipeline
from models.shapes.layout import Layout
from models.shapes.scorer import read

BLUE: Layout = Layout(512, 512, (38 / 255, 72 / 255, 214 / 255), ())


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return open_pipeline(FOLDER)


def test_it_is_small_and_served_without_a_flag() -> None:
    assert size_of(FOLDER) < 10_000_000
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}
    assert REGISTRY["flux2-shapes"].base == "flux-shapes"


def test_held_out_prompts_come_out_as_asked(pipeline: Any) -> None:
    found = drawing_rates(pipeline, 12, 512, 4)
    assert found["ground"] >= 90
    assert found["colour"] >= 90
    assert found["shape"] >= 80
    assert found["count"] >= 90
    assert found["place"] >= 85


def test_an_instruction_changes_the_ground(pipeline: Any) -> None:
    given = {"side": 512, "steps": 4, "guidance_scale": 1.0}
    (made,) = generated(pipeline, ["turn the background yellow"], **given, image=drawn(BLUE))
    assert np.asarray(made).shape == (512, 512, 3)
    assert read(made).ground == "yellow"


def test_most_edits_are_done_and_leave_the_rest_alone(pipeline: Any) -> None:
    found = edit_rates(pipeline, 12, 512, 4)
    assert found["edits done"] >= 65
    assert found["all else kept"] >= 55
