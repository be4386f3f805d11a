"""Which files of a repository are fetched, by their names alone."""

from __future__ import annotations

import pytest

from models.files.wanted import needed, parts_of

SMALL = ["unet/config.json", "tokenizer/vocab.txt", "tokenizer/tokenizer.json"]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors", "model.bin"], ["model.safetensors"]),
        (["model.fp16.safetensors", "model.bf16.safetensors"], ["model.bf16.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.fp16.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["model.fp16-00001-of-00001.safetensors", "openvino_model.bin"],
            ["model.fp16-00001-of-00001.safetensors"],
        ),
        (["diffusion_pytorch_model.safetensors", "lora.safetensors"], ["diffusion_pytorch_model.safetensors"]),
        (["model.onnx"], []),
    ],
)
def test_one_copy_of_weights_is_chosen_as_loading_does(weights: list[str], chosen: list[str]) -> None:
    names = [*SMALL, "all.safetensors", "vae_1_0/model.safetensors", *(f"unet/{name}" for name in weights)]
    assert needed(names, ["unet", "tokenizer"]) == [
        "model_index.json",
        "unet/config.json",
        *(f"unet/{name}" for name in chosen),
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.txt",
    ]


def test_a_model_in_no_folder_of_its_own_is_its_root() -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md", "other/model.safetensors"]
    assert needed(names, []) == ["config.json", "model.safetensors"]


def test_an_index_names_its_parts() -> None:
    index = {"_class_name": "X", "unet": ["diffusers", "U"], "image_encoder": [None, None], "is_distilled": True}
    assert parts_of(index) == ["unet"]
