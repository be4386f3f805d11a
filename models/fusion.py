"""Linears that read the same input, joined into one: fewer and larger matrix products from the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel, Flux3Transformer2DModel, FluxTransformer2DModel
from torch import nn

from models.streaming import blocks_of


def fuse(transformer: FluxTransformer2DModel, qkv: bool, mlp: bool) -> None:
    """Join projections in place, before quantisation. What is joined already stays as it is.

    Args:
        qkv: query, key and value of every attention; diffusers' own forward goes on working.
        mlp: in single blocks also the MLP's first linear, as `proj_in`: (query, key, value, MLP). Only
            `pipelines.families.flux1.blocks` knows it, so diffusers' forward of such a transformer no longer works.
    Raises: ValueError if a linear is not a plain one (adapters or quantised weights): join first, then change.
    """
    attentions = [block.attn for block in transformer.transformer_blocks]
    singles = list(transformer.single_transformer_blocks)
    if mlp:
        for block in singles:
            _fuse_single(block)
    if qkv:
        for attn in (*attentions, *(block.attn for block in singles)):
            _fuse_attention(attn)


def fuse_flux2(transformer: Flux2Transformer2DModel, qkv: bool, mlp: bool) -> None:
    """The same for FLUX.2, whose single blocks are joined as they are published: `mlp` has nothing left to do."""
    if qkv:
        for block in transformer.transformer_blocks:
            _fuse_attention(block.attn)


def fuse_flux3(transformer: Flux3Transformer2DModel, qkv: bool, mlp: bool) -> None:
    """The same for FLUX.3; its MLPs read the same tokens as attention, but stand apart."""
    if qkv:
        for block in blocks_of(transformer):
            _fuse_attention(block.attn)


def _fuse_attention(attn: Any) -> None:
    if attn.fused_projections:
        return
    attn.to_qkv = _take(attn, ("to_q", "to_k", "to_v"))
    if hasattr(attn, "add_q_proj"):
        attn.to_added_qkv = _take(attn, ("add_q_proj", "add_k_proj", "add_v_proj"))
    attn.fused_projections = True


def _fuse_single(block: Any) -> None:
    if hasattr(block, "proj_in"):
        return
    _fuse_attention(block.attn)
    block.proj_in = _joined((block.attn.to_qkv, block.proj_mlp))
    del block.attn.to_qkv, block.proj_mlp


def _take(attn: Any, names: tuple[str, ...]) -> nn.Linear:
    """One linear for all of these, which leave the module and free their memory."""
    joined = _joined([getattr(attn, name) for name in names])
    for name in names:
        delattr(attn, name)
    return joined


def _joined(linears: Sequence[nn.Module]) -> nn.Linear:
    """Results side by side, in order."""
    plain = [linear for linear in linears if type(linear) is nn.Linear and type(linear.weight) is nn.Parameter]
    if len(plain) < len(linears):
        raise ValueError("adapters or quantised weights stand in the way of joining projections: join them first")
    weights = [linear.weight for linear in plain]
    joined = nn.Linear(
        weights[0].shape[1], sum(len(weight) for weight in weights), bias=plain[0].bias is not None, device="meta"
    )
    joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if plain[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([linear.bias for linear in plain]), requires_grad=False)
    return joined.eval()
