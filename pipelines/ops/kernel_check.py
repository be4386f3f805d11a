"""Takes Triton's operations only where they pass a check against torch's, on this device, in this dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from models.float8 import Float8Linear, Rows, quantize_rows
from pipelines.ops.ops import REFERENCE, Heads, Ops, TokenRows


def checked_triton(
    heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    note: Callable[[str], None],
    has_float8: bool = False,
) -> Ops:
    """Triton's operations if they pass on this device; else torch's, and `note` is told why.

    Args: has_float8: whether the device has products of float8 rows, which some operations make.
    """
    try:
        triton: Ops = import_module("pipelines.ops.kernels").TRITON
        verdicts = _verdicts(triton, heads, head_dim, device, dtype, has_float8)
        wrong = [name for name, is_right in verdicts if not is_right]
    except Exception as exc:  # whatever a compiler, driver or missing package says, torch can do the same work
        note(f"kernels torch instead of triton: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}")
        return REFERENCE
    if wrong:
        note(f"kernels torch instead of triton: {', '.join(wrong)} came out wrong on {device}")
        return REFERENCE
    return triton


def _verdicts(
    ops: Ops, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype, has_float8: bool
) -> Iterable[tuple[str, bool]]:
    """Every operation on random tokens: is it as near to float64 as torch's own in this dtype?"""
    sample = _Sample(heads, head_dim, device, dtype)
    theirs, ours = sample.results(ops, dtype), sample.results(REFERENCE, dtype)
    for name, exact in sample.results(REFERENCE, torch.float64).items():
        allowed = 2 * _distance(ours[name], exact) + 16 * torch.finfo(dtype).eps
        yield name, _distance(theirs[name], exact) <= allowed
        if has_float8 and name in FLOAT8_FORMS:
            values, scale = sample.float8_form(ops, dtype, name)
            as_torch, torch_scale = quantize_rows(exact.float())
            allowed = 2 * _distance(as_torch.float() * torch_scale, exact) + allowed
            yield f"{name} in float8", _distance(values.float() * scale, exact) <= allowed


FLOAT8_FORMS = ("norm_modulate", "join_gelu")
"""Operations whose result may be float8 rows."""


class _Sample:
    """Random tokens of three pictures, and every operation on them."""

    def __init__(self, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        lengths, self.width, self.texts = (5, 3, 3), heads * head_dim, 4
        count = sum(lengths)
        self.tokens, self.update = noise(count, self.width), noise(count, self.width)
        self.attended, self.wide = noise(count, self.width), noise(count, 7 * self.width)
        self.mod = noise(len(lengths), 3 * self.width)
        self.heads = noise(count, 3 * self.width).unflatten(-1, (3, heads, head_dim))
        angles = torch.rand((count, 1, head_dim // 2), generator=generator, device=device) * 6.3
        self.rope = torch.stack((angles.cos(), angles.sin()), dim=-1)
        self.layer = nn.LayerNorm(self.width, eps=1e-6, elementwise_affine=False)
        self.norms = tuple(
            nn.RMSNorm(head_dim, eps=1e-6, device=device, dtype=dtype).requires_grad_(False) for _ in "qk"
        )
        for norm in self.norms:
            norm.weight.copy_(noise(head_dim))
        self.rows = TokenRows(lengths, device)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(device)
        self.places = order[: self.texts], order[self.texts :]

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        joint = torch.empty((len(text) + len(image), *text.shape[1:]), dtype=text.dtype, device=text.device)
        return joint.index_copy_(0, self.places[0], text).index_copy_(0, self.places[1], image)

    def results(self, ops: Ops, to: torch.dtype) -> dict[str, Tensor]:
        norms = self.norms[0].to(to), self.norms[1].to(to)
        gate = self.mod.to(to).chunk(3, dim=-1)[2]
        heads = self._heads(slice(None), to)
        text, image = self._heads(slice(self.texts), to), self._heads(slice(self.texts, None), to)
        ropes = self.rope[: self.texts], self.rope[self.texts :]
        joint = ops.joint_heads(text, image, norms, norms, ropes, ops.places(self))
        return {
            "norm_modulate": self._modulated(ops, to, None),
            "gate_add": ops.gate_add(self.tokens.to(to), ops.rows(self.rows), gate, self.update.to(to).clone()),
            "norm_rotate": torch.stack(ops.norm_rotate(heads, norms, self.rope)[:2]),
            "joint_heads": torch.stack(joint),
            "join_gelu": self._joined(ops, to, None),
        }

    def float8_form(self, ops: Ops, to: torch.dtype, name: str) -> Rows:
        linear = Float8Linear(nn.Linear(16, 16, device=self.tokens.device))
        rows: Rows = (self._modulated if name == "norm_modulate" else self._joined)(ops, to, linear)
        return rows

    def _heads(self, part: slice, to: torch.dtype) -> Heads:
        """Not contiguous, as in a step."""
        query, key, value = self.heads.to(to)[part].unbind(1)
        return query, key, value

    def _modulated(self, ops: Ops, to: torch.dtype, linear: Any) -> Any:
        scale, shift, _ = self.mod.to(to).chunk(3, dim=-1)
        return ops.norm_modulate(self.tokens.to(to), self.layer, ops.rows(self.rows), scale, shift, linear)

    def _joined(self, ops: Ops, to: torch.dtype, linear: Any) -> Any:
        wide = self.wide.to(to).clone()[:, 2 * self.width :]
        return ops.join_gelu(self.attended.to(to), wide, linear)


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max())
