"""Triton's and torch.compile's forms of the small operations against torch's own, over random shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import float8_kernel
from models.float8 import Float8Linear, quantize_rows
from pipelines.families.layout import PackLayout
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


def rms_norm(width: int, dtype: torch.dtype) -> nn.RMSNorm:
    norm = nn.RMSNorm(width, eps=1e-6, device=DEVICE, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(noise(width, dtype=dtype))
    return norm


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
    norms = rms_norm(2 * pairs, dtype), rms_norm(2 * pairs, dtype)
    tokens, update = noise(count, width, dtype=dtype), noise(count, width, dtype=dtype)
    scale, shift, gate = noise(len(lengths), 3 * width, dtype=dtype).chunk(3, dim=-1)
    split = noise(count, 4 * width, dtype=dtype)[:, width:].unflatten(-1, (3, heads, -1)).unbind(1)
    wide = noise(count, 5 * width, dtype=dtype)[:, 2 * width :]
    angles = torch.rand(count, 1, pairs, device=DEVICE) * 6.3
    rope = torch.stack((angles.cos(), angles.sin()), dim=-1)
    ours, theirs = ops.rows(rows), REFERENCE.rows(rows)
    for mine, reference in (
        (
            ops.norm_modulate(tokens, layer, ours, scale, shift, None),
            REFERENCE.norm_modulate(tokens, layer, theirs, scale, shift, None),
        ),
        (ops.gate_add(tokens, ours, gate, update.clone()), REFERENCE.gate_add(tokens, theirs, gate, update.clone())),
        *zip(ops.norm_rotate(split, norms, rope), REFERENCE.norm_rotate(split, norms, rope), strict=True),
        (ops.join_gelu(tokens, wide.clone(), None), REFERENCE.join_gelu(tokens, wide.clone(), None)),
    ):
        assert mine.shape == reference.shape
        assert mine.dtype == reference.dtype
        assert torch.allclose(mine.float(), reference.float(), atol=tolerance, rtol=tolerance)


@OTHERS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 7)), min_size=1, max_size=4), heads=widths[0])
def test_heads_of_any_pack_stand_in_joint_order(
    ops: Ops, dtype: torch.dtype, tolerance: float, lengths: list[tuple[int, int]], heads: int
) -> None:
    torch.manual_seed(len(lengths))
    texts, images = zip(*lengths, strict=True)
    layout = PackLayout(texts, images, torch.polar(torch.ones(1), torch.rand(sum(texts + images), 1, 6) * 6.3))
    norms = [(rms_norm(12, dtype), rms_norm(12, dtype)) for _ in "ti"]
    parts = [
        noise(sum(n), 3 * heads * 12, dtype=dtype).unflatten(-1, (3, heads, 12)).unbind(1) for n in (texts, images)
    ]
    mine, reference = (
        each.joint_heads(*parts, *norms, layout.ropes[:2], each.places(layout)) for each in (ops, REFERENCE)
    )
    for ours, theirs in zip(mine, reference, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def test_what_float8_linears_read_is_rounded_where_it_is_made() -> None:
    torch.manual_seed(0)
    linear = Float8Linear(nn.Linear(96, 16, device=DEVICE))
    tokens, mod, wide = (
        noise(6, 32, dtype=torch.float32),
        noise(2, 32, dtype=torch.float32),
        noise(6, 96, dtype=torch.float32),
    )
    layer, rows = nn.LayerNorm(32, eps=1e-6, elementwise_affine=False), TokenRows([4, 2], DEVICE)
    made = (
        kernels.TRITON.norm_modulate(tokens, layer, rows.index, mod, mod, linear),
        kernels.TRITON.join_gelu(tokens, wide.clone(), linear),
    )
    exact = (
        REFERENCE.norm_modulate(tokens, layer, rows.groups, mod, mod, linear),
        REFERENCE.join_gelu(tokens, wide.clone(), linear),
    )
    for ours, theirs in zip(made, map(quantize_rows, exact), strict=True):
        assert torch.allclose(ours.scale, theirs.scale, rtol=1e-5)
        assert_equally_rounded(ours.values, theirs.values)


@pytest.mark.parametrize(("rows", "width"), [(3, 16), (5, 80), (2, 300)])
def test_a_rounding_kernel_equals_torch(rows: int, width: int) -> None:
    torch.manual_seed(0)
    x = noise(rows, 2 * width, dtype=torch.bfloat16)[:, width:]
    x[0] = 0
    ours, theirs = float8_kernel.quantize_rows(x), quantize_rows(x)
    assert torch.allclose(ours.scale, theirs.scale, rtol=1e-6)
    assert_equally_rounded(ours.values, theirs.values)


def assert_equally_rounded(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """But for what lies between two float8 numbers, which another order of additions may round to either."""
    mine, reference = ours.float(), theirs.float()
    if DEVICE.type == "cpu":  # triton's interpreter forgets the carry where a value is rounded up to a power of two
        mine = torch.where(2 * mine == reference, reference, mine)
    assert (mine != reference).float().mean() < 0.02
    assert torch.allclose(mine, reference, rtol=0.13, atol=0.01)


@pytest.mark.parametrize("name", ["norm_modulate", "gate_add", "norm_rotate", "join_gelu"])
def test_a_token_does_not_depend_on_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    tokens, rope = noise(9, 48, dtype=torch.float32), torch.rand(9, 1, 12, 2, device=DEVICE)
    mod = noise(3, 48, dtype=torch.float32)

    def run(part: slice, lengths: list[int], rows: slice) -> torch.Tensor:
        index, some = kernels.TRITON.rows(TokenRows(lengths, DEVICE)), tokens[part]
        if name == "norm_modulate":
            return kernels.TRITON.norm_modulate(some, SimpleNamespace(eps=1e-6), index, mod[rows], mod[rows], None)
        if name == "gate_add":
            return kernels.TRITON.gate_add(some, index, mod[rows], some.clone())
        if name == "join_gelu":
            return kernels.TRITON.join_gelu(some[:, :8], some.clone(), None)
        norm, heads = SimpleNamespace(eps=1e-6, weight=mod[0, :24]), some.unflatten(-1, (2, 24))
        return torch.stack(kernels.TRITON.norm_rotate((heads, heads, heads), (norm, norm), rope[part]), dim=1)

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
    monkeypatch.setattr(kernels, "TRITON", replace(wrong, norm_rotate=lambda heads, norms, rope: 1 / 0))
    assert checked_triton(2, 16, DEVICE, torch.float32, notes.append) is REFERENCE
    assert "ZeroDivisionError" in notes[1]


def test_float64_is_left_to_torch() -> None:
    assert checked_triton(2, 16, DEVICE, torch.float64, lambda sentence: None) is REFERENCE
