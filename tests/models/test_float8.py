"""Linears in float8: what is rounded, by how much, and that rows do not touch each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.components import weight_bytes
from models.errors import LoadError
from models.float8 import Float8Linear, _emulated, _kernel, chosen_linears, quantize_rows, share, to_float8
from models.loading import load
from models.quantization import is_insensitive, quantize
from models.registry import REGISTRY


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False)


def test_a_row_is_rounded_to_three_bits_of_mantissa_whatever_its_size() -> None:
    torch.manual_seed(1)
    x = torch.randn(8, 64) * torch.logspace(-9, 30, 8)[:, None]
    values, scale = quantize_rows(x)
    assert (values.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, (8, 1))
    assert torch.all((values.float() * scale - x).abs().amax(1) <= x.abs().amax(1) / 16)
    assert torch.equal(values.float().abs().amax(1), torch.full((8,), torch.finfo(torch.float8_e4m3fn).max))


def test_rows_of_nothing_stay_nothing(linear: nn.Linear) -> None:
    assert torch.equal(Float8Linear(linear)(torch.zeros(3, 64)), linear.bias.expand(3, 48))


def test_no_rows_give_no_rows(linear: nn.Linear) -> None:
    assert Float8Linear(linear)(torch.zeros(0, 64)).shape == (0, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_close_and_keeps_shape_and_dtype(linear: nn.Linear, dtype: torch.dtype) -> None:
    linear = linear.to(dtype)
    x = torch.randn(2, 5, 64, dtype=dtype)
    exact, rounded = linear(x), Float8Linear(linear)(x)
    assert (rounded.shape, rounded.dtype) == (exact.shape, dtype)
    error = float((rounded - exact).float().norm() / exact.float().norm())
    assert 0.005 < error < 0.05


def test_a_row_is_the_same_in_any_company(linear: nn.Linear) -> None:
    rounded, x = Float8Linear(linear), torch.randn(40, 64)
    loud = torch.cat([x[:4], 1e4 * torch.randn(4, 64)])
    assert torch.equal(rounded(loud)[:4], rounded(x)[:4])


def test_the_emulation_equals_the_devices_own_product(linear: nn.Linear) -> None:
    x = torch.randn(24, 64)
    weight, weight_scale = quantize_rows(linear.weight)
    factors = (*quantize_rows(x), weight, weight_scale.t(), linear.bias)
    try:
        theirs = _kernel(*factors)
    except RuntimeError as exc:
        pytest.skip(f"torch {torch.__version__} has no such product on a CPU: {exc}")
    assert torch.allclose(_emulated(*factors).bfloat16(), theirs, rtol=1e-2, atol=1e-3)


def test_widths_that_the_kernel_refuses_stay_exact() -> None:
    odd = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 64), nn.Linear(64, 64))
    to_float8(odd, lambda name: True)
    assert [type(layer) for layer in odd] == [nn.Linear, nn.Linear, Float8Linear]


def test_the_sensitive_layers_of_a_flux_stay_exact() -> None:
    transformer = load(REGISTRY["flux-shapes"], CpuAccelerator()).transformer
    chosen = chosen_linears(transformer, is_insensitive)
    exact = {name for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)} - set(chosen)
    assert {name.split(".")[0] for name in exact if "blocks" not in name} == {
        "x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out",
    }  # fmt: skip
    assert all(".norm" in name for name in exact if "blocks" in name)
    assert "transformer_blocks.0.attn.to_q" in chosen
    assert "single_transformer_blocks.3.proj_out" in chosen


def test_of_sdxl_only_transformer_blocks_are_rounded() -> None:
    """Not what a step's time goes through, whose errors reach every cell."""
    chosen = chosen_linears(load(resolve("random:tiny-sdxl"), CpuAccelerator()).unet, is_insensitive)
    assert chosen
    assert all(".transformer_blocks." in name for name in chosen)


def test_a_twin_shares_what_is_exact_and_leaves_the_original_alone(linear: nn.Linear) -> None:
    original = nn.Sequential(linear, nn.LayerNorm(48), nn.Linear(48, 64)).requires_grad_(False)
    before, x = copy.deepcopy(original.state_dict()), torch.randn(3, 64)
    expected = original(x)
    twin = share(original)
    to_float8(twin, lambda name: name == "0")
    assert weight_bytes(original, twin) == weight_bytes(original) + 64 * 48 + 4 * 48
    assert twin[2].weight is original[2].weight
    assert torch.equal(original(x), expected)
    assert original.state_dict().keys() == before.keys()
    assert not torch.equal(twin(x), expected)


class OldGpu(CpuAccelerator):
    """A CUDA device of before float8."""

    kind = "cuda"
    name = "Tesla"


def test_a_device_without_float8_refuses_it_with_advice(linear: nn.Linear) -> None:
    with pytest.raises(LoadError, match=r"8\.9 or later, not .*--quantization none"):
        quantize(nn.Sequential(linear), "fp8", OldGpu())
