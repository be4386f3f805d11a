"""Block-diagonal attention over a packed sequence: every picture sees its own tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import import_module
from inspect import signature
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(query, key, value, lengths): each (S, heads, head_dim) with S = sum(lengths) -> (S, heads * head_dim)."""


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """One fused attention call for every run of equally long pictures; needs no special kernel."""
    outputs = []
    start = 0
    for count, length in runs(lengths):
        stop = start + count * length
        q, k, v = (x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours of equal length as (count, length)."""
    found: list[tuple[int, int]] = []
    for length in lengths:
        if found and found[-1][1] == length:
            found[-1] = (found[-1][0] + 1, length)
        else:
            found.append((1, length))
    return found


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """One variable-length kernel for all pictures (torch.nn.attention.varlen, FlashAttention layout)."""
    at = offsets(tuple(lengths), query.device)
    longest = max(lengths)
    output: Tensor = _varlen_kernel()(query, key, value, at, at, longest, longest)
    return output.flatten(1)


@lru_cache
def _varlen_kernel() -> Callable[..., Tensor]:
    """torch's kernel; unsplit where it can be told so, since a split chosen by the batch would change roundings."""
    from torch.nn.attention.varlen import varlen_attn

    unsplit = {"num_splits": 1} if "num_splits" in signature(varlen_attn).parameters else {}
    return partial(varlen_attn, **unsplit)  # type: ignore[arg-type, return-value]


@lru_cache(maxsize=64)
def offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(len(lengths) + 1,) int32: where each picture starts and the last one ends; the same in all blocks of a step.

    Filled on the device: a copy from the host would wait for the steps.
    """
    ends = accumulate(lengths, initial=0)
    return torch.cat([torch.full((1,), end, dtype=torch.int32, device=device) for end in ends])


def cudnn_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Grouped, through cuDNN's kernel."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return grouped_attention(query, key, value, lengths)


def fa3_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """FlashAttention 3's variable-length kernel (package fa3-fwd), unsplit."""
    at, longest = offsets(tuple(lengths), query.device), max(lengths)
    kernel = import_module("fa3_fwd_interface").flash_attn_varlen_func
    output: Tensor = kernel(query, key, value, at, at, longest, longest, num_splits=1)
    return output.flatten(1)


READS_OFFSETS: tuple[Attend, ...] = (varlen_attention, fa3_attention)
"""Read `offsets` besides their arguments."""
