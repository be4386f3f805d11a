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

from models.float8 import FLOAT8

Attend = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(query, key, value, lengths): each (S, heads, head_dim) with S = sum(lengths) -> (S, heads * head_dim)."""


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """One fused attention call for every run of equally long pictures; needs no special kernel."""

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return _run_by_run(fused, query, key, value, lengths)


def _run_by_run(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Args: attend: over pictures of one length, (count, length, heads, head_dim) each."""
    outputs = []
    start = 0
    for count, length in runs(lengths):
        stop = start + count * length
        q, k, v = (x[start:stop].unflatten(0, (count, length)) for x in (query, key, value))
        outputs.append(attend(q, k, v).flatten(2).flatten(0, 1))
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
    from torch.nn.attention.varlen import varlen_attn

    return _unsplit(varlen_attn)  # type: ignore[arg-type]


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
    output: Tensor = _fa3_kernel()(query, key, value, at, at, longest, longest)
    return output.flatten(1)


@lru_cache
def _fa3_kernel() -> Callable[..., Tensor]:
    return _unsplit(import_module("fa3_fwd_interface").flash_attn_varlen_func)


def _unsplit(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The kernel told not to split where it can be: a split chosen by the batch would change roundings."""
    return partial(kernel, **({"num_splits": 1} if "num_splits" in signature(kernel).parameters else {}))


def fa3_float8_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """FlashAttention 3's kernel over float8 numbers: both products are of 8 bits."""
    at, longest = offsets(tuple(lengths), query.device), max(lengths)
    (q, of_q), (k, of_k), (v, of_v) = (round_heads(x, lengths) for x in (query, key, value))
    scales = {"q_descale": of_q, "k_descale": of_k, "v_descale": of_v}
    output: Tensor = _fa3_kernel()(q, k, v, at, at, longest, longest, **scales)
    return output.flatten(1).to(query.dtype)  # it comes as bfloat16


def sage_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """SageAttention: query and key in int8; value in float8 where it has such a kernel, else in half precision.

    Run by run: its kernel for variable lengths subtracts a mean of the keys that is taken over all pictures.
    """
    kernel = partial(import_module("sageattention").sageattn, tensor_layout="NHD", is_causal=False)
    # Version 1 takes the mean off the keys that it is given.
    return _run_by_run(lambda q, k, v: kernel(q, k.clone(), v), query, key, value, lengths)


def emulated_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Exact attention over numbers rounded to float8: what kernels come near to, for devices without them."""

    def rounded(x: Tensor) -> Tensor:
        values, scale = round_heads(x, lengths)
        of_tokens = torch.cat([row.expand(length, -1) for row, length in zip(scale, lengths, strict=True)])
        return (values.float() * of_tokens[:, :, None]).to(x.dtype)

    return grouped_attention(rounded(query), rounded(key), rounded(value), lengths)


def round_heads(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(S, heads, head_dim) -> float8 values of that shape, and float32 scales (pictures, heads).

    Every picture has scales of its own, so none is rounded otherwise in company.
    """
    values = torch.empty(x.shape, dtype=FLOAT8, device=x.device)
    scales = []
    start = 0
    for count, length in runs(lengths):
        stop = start + count * length
        part = x[start:stop].unflatten(0, (count, length))
        largest = torch.linalg.vector_norm(part, torch.inf, dim=(1, 3), keepdim=True)
        scale = (largest / torch.finfo(FLOAT8).max).clamp_min(torch.finfo(x.dtype).tiny)
        values[start:stop] = (part / scale).flatten(0, 1)
        scales.append(scale.float().view(count, -1))
        start = stop
    return values, torch.cat(scales)


READS_OFFSETS: tuple[Attend, ...] = (varlen_attention, fa3_attention, fa3_float8_attention)
"""Read `offsets` besides their arguments."""
