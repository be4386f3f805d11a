"""Copies for measurements: they share nothing with their original, and compute what it computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from benchmarks.copies import copied, in_float32, set_aside
from models.accelerator import CpuAccelerator, open_accelerator
from models.loading import load
from models.registry import TINY

CPU = torch.device("cpu")


def block() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16), nn.Linear(16, 4, bias=False)).to(torch.bfloat16)
    return made.requires_grad_(False)


def test_a_copy_shares_no_memory() -> None:
    original = block()
    copy = copied(original, CPU)
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), copy.parameters(), strict=True))
    for parameter in copy.parameters():
        parameter.zero_()
    assert all(bool(parameter.any()) for parameter in original.parameters())


def test_float32_over_small_weights_is_float32() -> None:
    original, x = block(), torch.randn(3, 8)
    exact = copied(original, CPU).float()
    computed = in_float32(original, CPU)
    assert torch.equal(computed(x), exact(x))
    weights = [p for name, p in computed.named_parameters() if "_linear" in name]
    assert len(weights) == 3
    assert all(weight.dtype == torch.bfloat16 for weight in weights)


def test_parts_wait_on_the_host_where_there_is_a_device() -> None:
    accelerator = open_accelerator("cpu")
    components = load(TINY, accelerator)
    assert set_aside(components, accelerator, "transformer") is components

    class Elsewhere(CpuAccelerator):
        kind = "cuda"

    on_meta = replace(components, vae=components.vae.to("meta").to_empty(device="cpu"))
    aside = set_aside(on_meta, Elsewhere(), "transformer", "vae")
    assert aside.transformer.device == aside.vae.device == CPU
