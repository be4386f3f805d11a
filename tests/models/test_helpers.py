"""Bytes of what helps others draw: known sizes against real modules, files against what loading makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.flux import ReduxImageEncoder
from huggingface_hub import constants
from torch import nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.accelerator import CpuAccelerator
from models.auxiliaries import load_auxiliary
from models.helpers import brought_bytes, helper_bytes
from models.registry import REGISTRY, ModelSpec, own_estimator

REDUX, DEPTH = REGISTRY["FLUX.1-Redux-dev"], REGISTRY["Depth-Anything-V2-Small"]
EMBEDDED = ("flux-shapes-redux", "flux-shapes-controlnet-canny")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def half(*modules: nn.Module) -> int:
    """Bytes in half precision."""
    return 2 * sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_what_is_not_here_counts_by_what_was_published() -> None:
    so400m = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    small = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        image_size=518,
        patch_size=14,
        reshape_hidden_states=False,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        apply_layernorm=True,
    )
    depth = DepthAnythingConfig(
        backbone_config=small,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    with torch.device("meta"):
        prior = half(SiglipVisionModel(so400m), ReduxImageEncoder())
        estimator = half(DepthAnythingForDepthEstimation(depth))
    assert helper_bytes(REDUX) == prior
    assert helper_bytes(DEPTH) == estimator


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_is_here_counts_by_its_files(name: str) -> None:
    spec = REGISTRY[name]
    loaded = load_auxiliary(spec, CpuAccelerator(), torch.bfloat16)
    assert helper_bytes(spec) == half(*loaded.modules.values())


def test_an_estimator_that_a_checkpoint_brings_is_counted_with_it() -> None:
    spec = REGISTRY["flux-shapes-depth"]
    folder = own_estimator(spec)
    assert folder is not None
    estimator = ModelSpec("it", str(folder), variant="depth-estimator")
    assert brought_bytes(spec) == helper_bytes(estimator)
    assert brought_bytes(REGISTRY["flux-shapes"]) == 0


def test_a_controlnet_that_is_not_here_is_of_unknown_size() -> None:
    assert helper_bytes(ModelSpec("net", "owner/controlnet", variant="controlnet")) is None


def test_a_download_that_broke_off_counts_as_published(tmp_path: Path) -> None:
    repo = tmp_path / "cache" / f"models--{REDUX.source.replace('/', '--')}"
    snapshot = repo / "snapshots" / "c0ffee"
    shutil.copytree(REGISTRY["flux-shapes-redux"].source, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    assert helper_bytes(REDUX) == helper_bytes(REGISTRY["flux-shapes-redux"])
    next((snapshot / "image_encoder").glob("*.safetensors")).unlink()
    assert helper_bytes(REDUX) == 2 * (428_225_600 + 64_503_808)
