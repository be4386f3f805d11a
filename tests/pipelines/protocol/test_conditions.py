"""What node and worker tell each other about pictures, masks and adapters."""

from __future__ import annotations

import json

import msgpack
import pytest

from pipelines.protocol.conditions import (
    Adapter,
    Coarse,
    Condition,
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    InputPicture,
    Redux,
    Reference,
    Refine,
    condition_from_dict,
    kept_steps,
)
from pipelines.protocol.frames import Failed, Submit, decode, encode
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import make_params

EVERY: tuple[Condition, ...] = (
    Inpaint(0, 1, 0.75, is_differential=True),
    Control("depth", 2, is_prepared=True),
    Reference((3, 4)),
    Redux((5,), "prior", 0.5, 0.25),
    ControlNet("edges", 6, 0.6, 0.1, 0.9, "canny"),
    ControlNet("poses", 7),
    Refine(0.25),
    Coarse(0.3),
)


def test_parameters_survive_json_and_msgpack() -> None:
    params = make_params(conditions=EVERY, adapters=(Adapter("a0.safetensors", 0.5), Adapter("b1.safetensors")))
    plain = params.to_dict()
    assert GenerationParams.from_dict(json.loads(json.dumps(plain))) == params
    assert GenerationParams.from_dict(msgpack.unpackb(msgpack.packb(plain))) == params
    assert params.num_pictures == 8
    assert params.find(Redux) == EVERY[3]
    assert params.find(Fill) is None


def test_a_row_of_an_older_store_loads_without_conditions() -> None:
    plain = make_params().to_dict()
    del plain["conditions"], plain["adapters"]
    assert GenerationParams.from_dict(plain) == make_params()


def test_pictures_and_the_field_at_fault_cross_the_wire() -> None:
    picture = InputPicture(2, 1, 3, b"abcdef")
    submit = Submit("a", 1, make_params(conditions=(ImageToImage(0, 0.5),)).to_dict(), pictures=[picture.to_dict()])
    read = decode(encode(submit)[4:])
    assert isinstance(read, Submit)
    assert InputPicture(**read.pictures[0]) == picture
    failed = Failed("a", 1, "input_error", "no", ("loras", 0, "path"))
    assert decode(encode(failed)[4:]) == failed


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "image_to_image", "picture": 0, "strength": 0.0},
        {"kind": "image_to_image", "picture": 0, "strength": 1.01},
        {"kind": "image_to_image", "picture": 0, "strength": float("nan")},
        {"kind": "image_to_image", "picture": -1, "strength": 0.5},
        {"kind": "inpaint", "picture": 0, "mask": 16, "strength": 0.5},
        {"kind": "fill", "picture": 0, "mask": -1},
        {"kind": "control", "control": "pose", "picture": 0},
        {"kind": "reference", "pictures": []},
        {"kind": "redux", "pictures": [0], "encoder": "e", "strength": -0.1},
        {"kind": "redux", "pictures": [0], "encoder": "e", "prompt_strength": float("inf")},
        {"kind": "controlnet", "name": "n", "picture": 0, "start": 0.5, "end": 0.5},
        {"kind": "controlnet", "name": "n", "picture": 0, "control": "pose"},
        {"kind": "refine", "strength": 1.0},
        {"kind": "cosmic"},
        {},
    ],
)
def test_a_value_out_of_its_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|picture|condition|order"):
        condition_from_dict(values)


@pytest.mark.parametrize(
    "conditions",
    [
        (ImageToImage(0, 0.5), ImageToImage(1, 0.5)),
        (ImageToImage(0, 0.5), Inpaint(0, 1, 0.5)),
        (Inpaint(0, 1, 0.5), Fill(0, 1)),
    ],
)
def test_conditions_that_contradict_each_other_are_refused(conditions: tuple[Condition, ...]) -> None:
    with pytest.raises(ValueError, match=r"more than one|exclude"):
        make_params(conditions=conditions)


@pytest.mark.parametrize("file", ["../a.safetensors", "/a.safetensors", "a/b.safetensors", ".safetensors", "a.pt", ""])
def test_an_adapter_is_the_name_of_a_safetensors_file(file: str) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        Adapter(file)


@pytest.mark.parametrize(("pixels", "channels"), [(b"abc", 3), (b"a", 2), (b"", 1)])
def test_a_picture_whose_bytes_disagree_with_its_size_is_refused(pixels: bytes, channels: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        InputPicture(2, 1, channels, pixels)


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [(28, 1.0, 28), (28, 0.95, 27), (28, 0.5, 14), (28, 0.01, 1), (1, 0.3, 1), (4, 0.5, 2)],
)
def test_strength_keeps_the_last_steps_as_diffusers_does(steps: int, strength: float, kept: int) -> None:
    assert kept_steps(steps, strength) == kept
    assert make_params(num_inference_steps=steps, conditions=(ImageToImage(0, strength),)).num_steps == kept


def test_a_second_phase_adds_its_steps() -> None:
    params = make_params(num_inference_steps=20, conditions=(ImageToImage(0, 0.5), Refine(0.3)))
    assert params.phases == (10, 6)
    assert params.num_steps == 16
