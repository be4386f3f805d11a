"""Kernels of other packages as their signatures and checks have them, computing in float32: they need no GPU.

fa3-fwd 0.0.3 (`fa3_fwd_interface.py`, `hopper/flash_api.cpp`); SageAttention from 1.0.6 on (`sageattention/core.py`),
with the parameters that all versions have.
"""

from __future__ import annotations

import importlib.machinery
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pipelines.ops.attention import grouped_attention


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor:
    """FlashAttention 3: (total, heads, head_dim) each, a scale for every sequence and head."""
    assert (num_splits, causal) == (1, False)
    assert q.dtype == k.dtype == v.dtype
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    lengths = cu_seqlens_q.diff().tolist()
    assert (max_seqlen_q, max_seqlen_k) == (max(lengths),) * 2
    if q.dtype != torch.float8_e4m3fn:
        return grouped_attention(q, k, v, lengths).unflatten(1, q.shape[1:])
    whole = []
    for x, descale in ((q, q_descale), (k, k_descale), (v, v_descale)):
        assert descale is not None
        assert (descale.dtype, descale.shape) == (torch.float32, (len(lengths), x.shape[1]))
        whole.append(x.float() * descale.repeat_interleave(torch.tensor(lengths), 0)[:, :, None])
    return grouped_attention(*whole, lengths).unflatten(1, q.shape[1:]).bfloat16()


def sageattn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """SageAttention: query and key in int8 around the keys' mean; here every token has a scale of its own.

    As in 1.0.6 the mean is taken off the caller's own keys.
    """
    assert not is_causal
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    k -= k.mean(dim=1 if tensor_layout == "NHD" else 2, keepdim=True)
    if tensor_layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    rounded = [_int8(x.float()) for x in (q, k)]
    result = torch.nn.functional.scaled_dot_product_attention(*rounded, v.float(), scale=sm_scale).to(q.dtype)
    return result.transpose(1, 2) if tensor_layout == "NHD" else result


def _int8(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True) / 127
    return (x / scale).round() * scale


def published(**functions: Any) -> ModuleType:
    """A module that is found as if it were installed."""
    module = ModuleType("published")
    module.__spec__ = importlib.machinery.ModuleSpec("published", None)
    module.__dict__.update(functions)
    return module
