"""Chooses what a packed forward runs on when a model is loaded: by switches, checks and measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch.fx.experimental import _config as symbolic_shapes

from models.accelerator import Accelerator
from models.tuning import Tuning
from pipelines.ops.attention import READS_OFFSETS, Attend, grouped_attention, offsets
from pipelines.ops.attention_choice import Place, choose_attention, choose_rounded
from pipelines.ops.kernel_check import checked_triton
from pipelines.ops.ops import REFERENCE, TRACEABLE, Ops

F = TypeVar("F", bound=Callable[..., Any])
Note = Callable[[str], None]
"""Takes one sentence for the operator."""


def as_it_is(function: F) -> F:
    """Run a region without compiling it."""
    return function


@lru_cache
def compiled(function: Callable[..., Any]) -> Any:
    """Run a region through torch.compile: once for all numbers of tokens and all blocks of a kind."""
    # Otherwise a pack in which two lengths happen to be equal would be compiled again.
    symbolic_shapes.use_duck_shape = False
    return torch.compile(function, dynamic=True, fullgraph=True)


@dataclass(frozen=True)
class Compute:
    """What the packed forward runs on; the arithmetic is the same up to rounding.

    Args: region: wraps the tensor functions before and after attention: eager or compiled.
    """

    attend: Attend = grouped_attention
    ops: Ops = REFERENCE
    region: Callable[[Any], Any] = as_it_is

    def kept(self, lengths: tuple[int, ...], device: torch.device) -> object:
        """What attention over these lengths reads besides its arguments: whoever records it has to hold on to that."""
        return offsets(lengths, device) if self.attend in READS_OFFSETS else None

    def eager(self) -> Compute:
        """The same without torch.compile, which would compile every mix of adapters anew."""
        return self if self.region is as_it_is else Compute(self.attend)


def choose_compute(
    tuning: Tuning,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    accelerator: Accelerator,
    note: Note = lambda sentence: None,
    is_rounded: bool = False,
) -> Compute:
    """What a model with this attention runs on here.

    Args:
        tuning: resolved for this kind of device.
        note: called for every choice that an operator should know.
        is_rounded: whether its weights are float8, so that its pictures are known to be approximate.
    Raises: ValueError in one sentence if an attention was asked for by name that cannot run here.
    """
    place = Place(accelerator.kind, accelerator.capability, dtype)
    accelerator.allow_split_k(tuning.split_k is not False)
    attend = choose_attention(tuning.attention, place, heads, head_dim, accelerator, note)
    if tuning.round_attention and is_rounded:
        attend = choose_rounded(attend, place, heads, head_dim, accelerator, note)
    if tuning.kernels == "compiled":
        return Compute(attend, TRACEABLE, compiled)
    if tuning.kernels == "triton":
        ops = checked_triton(heads, head_dim, accelerator.device, dtype, note, accelerator.has_float8)
        return Compute(attend, ops)
    return Compute(attend)
