"""What a `--model` argument means, and what comes along with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.arguments import resolve
from models.registry import REGISTRY, ModelSpec, siblings


@pytest.mark.parametrize(
    ("class_name", "name", "variant"),
    [
        ("FluxPipeline", "mine", "dev"),
        ("FluxPipeline", "my-schnell", "schnell"),
        ("FluxFillPipeline", "mine", "fill"),
        ("FluxKontextPipeline", "mine", "kontext"),
        ("FluxPriorReduxPipeline", "mine", "redux"),
        ("FluxControlPipeline", "my-canny", "canny"),
        ("FluxControlPipeline", "my-depth", "depth"),
    ],
)
def test_a_folder_is_what_its_pipeline_says(tmp_path: Path, class_name: str, name: str, variant: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    assert resolve(str(folder)).variant == variant


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_folder_with_a_damaged_index_is_left_to_loading(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    assert resolve(str(tmp_path)).source == str(tmp_path.resolve())


def test_published_checkpoints_are_what_their_names_say() -> None:
    assert resolve("black-forest-labs/FLUX.1-Fill-dev") is REGISTRY["FLUX.1-Fill-dev"]
    assert resolve("someone/flux-kontext-tuned").variant == "kontext"


def test_the_embedded_model_brings_its_siblings_and_no_other_does() -> None:
    here = siblings([REGISTRY["flux-shapes"]])
    assert {spec.base for spec in here} <= {"flux-shapes"}
    assert all(Path(spec.source).is_dir() for spec in here)
    assert siblings([REGISTRY["FLUX.1-dev"]]) == ()
    assert not set(siblings([REGISTRY["flux-shapes"], *here]))


def test_priors_and_estimators_do_not_draw() -> None:
    assert {spec.name for spec in REGISTRY.values() if not spec.draws} == {
        "flux-shapes-redux",
        "flux-shapes-controlnet-canny",
        "FLUX.1-Redux-dev",
        "Depth-Anything-V2-Small",
    }
    assert ModelSpec("x", "x").draws
