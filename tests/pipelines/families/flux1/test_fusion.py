"""Joined projections: the same pictures from the same weights, and no weight held twice."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig

from models.accelerator import CpuAccelerator
from models.components import weight_bytes
from models.fusion import fuse
from models.loading import load
from models.registry import TINY
from models.tuning import Tuning
from tests.pipelines.families.flux1.test_packed import MIX, make_sample, make_transformer, packed

BOTH_WAYS = pytest.mark.parametrize(("qkv", "mlp"), [(True, False), (False, True), (True, True)])


@BOTH_WAYS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_joined_projections_draw_the_same(dtype: torch.dtype, tolerance: float, qkv: bool, mlp: bool) -> None:
    transformer = make_transformer(dtype=dtype)
    mix = [make_sample(*values, dtype) for values in MIX]
    with torch.inference_mode():
        before = packed(transformer, mix)
        fuse(transformer, qkv, mlp)
        after = packed(transformer, mix)
    assert max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) <= tolerance


@BOTH_WAYS
def test_no_weight_is_held_twice_and_joining_again_changes_nothing(qkv: bool, mlp: bool) -> None:
    transformer = make_transformer()
    size, linears = weight_bytes(transformer), count_linears(transformer)
    fuse(transformer, qkv, mlp)
    once = transformer.state_dict()
    assert weight_bytes(transformer) == size
    # Two double blocks have two triples each; two single blocks join three to one, or four.
    assert linears - count_linears(transformer) == qkv * 8 + mlp * 6 + (qkv and not mlp) * 4
    fuse(transformer, qkv, mlp)
    assert transformer.state_dict().keys() == once.keys()


def count_linears(module: torch.nn.Module) -> int:
    return sum(isinstance(part, torch.nn.Linear) for part in module.modules())


def test_adapters_are_not_joined_silently() -> None:
    transformer = make_transformer()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="adapters"):
        fuse(transformer, qkv=True, mlp=False)


def test_an_adapter_on_joined_projections_takes_part() -> None:
    transformer = make_transformer()
    fuse(transformer, qkv=True, mlp=True)
    plain = copy.deepcopy(transformer)
    transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["proj_in", "to_qkv"]))
    mix = [make_sample(*values, torch.float32) for values in MIX]
    with torch.inference_mode():
        assert float((packed(transformer, mix)[0] - packed(plain, mix)[0]).abs().max()) > 1e-3


def test_loading_joins_what_it_is_told_to() -> None:
    tuned = load(TINY, CpuAccelerator(), tuning=Tuning(fuse_qkv=True, fuse_mlp=True, vae_channels_last=True))
    assert tuned.transformer.transformer_blocks[0].attn.fused_projections
    assert hasattr(tuned.transformer.single_transformer_blocks[0], "proj_in")
    assert tuned.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not load(TINY, CpuAccelerator()).transformer.transformer_blocks[0].attn.fused_projections
