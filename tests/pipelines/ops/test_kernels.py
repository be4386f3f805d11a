"""Triton's and torch.compile's forms of the small operations against torch's own, over random shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipelines.ops import kernels
from pipelines.ops.kernel_check import checked_triton
from pipelines.ops.ops import REFERENCE, TRACEABLE, Ops, TokenRows
from tests.pipelines.families.flux1.test_packed import MIX, make_sample, make_transformer, packed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OTHERS = pytest.mark.parametrize("ops", [kernels.TRITON, TRACEABLE], ids=lambda ops: ops.name)

packs = st.lists(st.integers(1, 7), min_size=1, max_size=5)
widths = st.integers(1, 3), st.integers(1, 20)


def noise(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@OTHERS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@settings(max_examples=8, deadline=None)
@given(lengths=packs, heads=widths[0], pairs=widths[1], seed=st.integers(0, 2**31))
def test_any_shape_equals_torch(
    ops: Ops, dtype: torch.dtype, tolerance: float, lengths: list[int], heads: int, pairs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    count, width = sum(lengths), heads * 2 * pairs
    rows, layer = TokenRows(lengths, DEVICE), nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    rms = nn.RMSNorm(2 * pairs, eps=1e-6, device=DEVICE, dtype=dtype).requires_grad_(False)
    rms.weight.copy_(noise(2 * pairs, dtype=dtype))
    tokens, update = noise(count, width, dtype=dtype), noise(count, width, dtype=dtype)
    scale, shift, gate = noise(len(lengths), 3 * width, dtype=dtype).chunk(3, dim=-1)
    x = noise(count, 2 * width, dtype=dtype)[:, width:].unflatten(-1, (heads, -1))
    angles = torch.rand(count, 1, pairs, device=DEVICE) * 6.3
    rope = torch.stack((angles.cos(), angles.sin()), dim=-1)
    ours, theirs = ops.rows(rows), REFERENCE.rows(rows)
    for mine, reference in (
        (
            ops.norm_modulate(tokens, layer, ours, scale, shift),
            REFERENCE.norm_modulate(tokens, layer, theirs, scale, shift),
        ),
        (ops.gate_add(tokens, ours, gate, update.clone()), REFERENCE.gate_add(tokens, theirs, gate, update.clone())),
        (ops.norm_rotate(x, rms, rope), REFERENCE.norm_rotate(x, rms, rope)),
    ):
        assert mine.shape == reference.shape
        assert mine.dtype == reference.dtype
        assert torch.allclose(mine.float(), reference.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["norm_modulate", "gate_add", "norm_rotate"])
def test_a_token_does_not_depend_on_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    tokens, rope = noise(9, 48, dtype=torch.float32), torch.rand(9, 1, 12, 2, device=DEVICE)
    mod = noise(3, 48, dtype=torch.float32)

    def run(part: slice, lengths: list[int], rows: slice) -> torch.Tensor:
        index, some = kernels.TRITON.rows(TokenRows(lengths, DEVICE)), tokens[part]
        if name == "norm_modulate":
            return kernels.TRITON.norm_modulate(some, SimpleNamespace(eps=1e-6), index, mod[rows], mod[rows])
        if name == "gate_add":
            return kernels.TRITON.gate_add(some, index, mod[rows], some.clone())
        norm = SimpleNamespace(eps=1e-6, weight=mod[0, :24])
        return kernels.TRITON.norm_rotate(some.unflatten(-1, (2, 24)), norm, rope[part])

    together = run(slice(0, 9), [4, 3, 2], slice(0, 3))
    assert torch.equal(together[4:7], run(slice(4, 7), [3], slice(1, 2)))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="its pack is made on the CPU; test_gpu.py has the device's")
@OTHERS
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_whole_forward_equals_torch(ops: Ops, is_fused: bool) -> None:
    from models.fusion import fuse
    from pipelines.ops.compute import Compute

    transformer = make_transformer()
    fuse(transformer, is_fused, is_fused)
    mix = [make_sample(*values, torch.float32) for values in MIX]
    with torch.inference_mode():
        pairs = zip(packed(transformer, mix), packed(transformer, mix, Compute(ops=ops)), strict=True)
        assert max(float((a - b).abs().max()) for a, b in pairs) <= 1e-5


def test_kernels_that_are_right_are_taken() -> None:
    notes: list[str] = []
    for dtype in (torch.float32, torch.bfloat16):
        assert checked_triton(2, 24, DEVICE, dtype, notes.append) is kernels.TRITON
    assert notes == []


def test_a_kernel_that_is_wrong_or_breaks_is_replaced_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    wrong = replace(kernels.TRITON, gate_add=lambda tokens, rows, gate, update: update)
    monkeypatch.setattr(kernels, "TRITON", wrong)
    assert checked_triton(2, 16, DEVICE, torch.float32, notes.append) is REFERENCE
    assert notes == [f"kernels torch instead of triton: gate_add came out wrong on {DEVICE}"]
    monkeypatch.setattr(kernels, "TRITON", replace(wrong, norm_rotate=lambda x, norm, rope: 1 / 0))
    assert checked_triton(2, 16, DEVICE, torch.float32, notes.append) is REFERENCE
    assert "ZeroDivisionError" in notes[1]


def test_float64_is_left_to_torch() -> None:
    assert checked_triton(2, 16, DEVICE, torch.float64, lambda sentence: None) is REFERENCE
