"""FLUX's attention for training: the same numbers, with the rotation as one small matrix product.

Stock code splits every head into even and odd halves and stacks them again in float32, which costs more memory
traffic than all matrix products of a model this small. Serving uses the stock processor.
"""

import functools

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention


class LeanAttention:
    """A drop-in for diffusers' FluxAttnProcessor without adapters or parallelism.

    A mask is (text tokens,): what is added to the logits of the first keys.
    """

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Joint attention of text and image (both returned), or self-attention of their concatenation."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, attn.head_dim)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = _normed(query, attn.norm_q), _normed(key, attn.norm_k)
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text = [project(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)) for project in projections]
            query = torch.cat([_normed(text[0], attn.norm_added_q), query], dim=1)
            key = torch.cat([_normed(text[1], attn.norm_added_k), key], dim=1)
            value = torch.cat([text[2], value], dim=1)
        mixed = _mixed(query, key, value, image_rotary_emb, attention_mask)
        if encoder_hidden_states is None:
            return mixed
        split = encoder_hidden_states.shape[1]
        return attn.to_out[0](mixed[:, split:]), attn.to_add_out(mixed[:, :split])


class LeanParallel:
    """The same for diffusers' Flux2ParallelSelfAttnProcessor."""

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention and feed-forward of one sequence."""
        projected = attn.to_qkv_mlp_proj(hidden_states)
        qkv, hidden = projected.split([3 * attn.inner_dim, projected.shape[-1] - 3 * attn.inner_dim], dim=-1)
        query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in qkv.chunk(3, dim=-1))
        mixed = _mixed(_normed(query, attn.norm_q), _normed(key, attn.norm_k), value, image_rotary_emb)
        output: Tensor = attn.to_out(torch.cat([mixed, attn.mlp_act_fn(hidden)], dim=-1))
        return output


def _mixed(
    query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None = None
) -> Tensor:
    """Attention over (B, tokens, heads, width), rotated: (B, tokens, heads * width)."""
    if rotary is not None:
        cos, sin = (table.to(query.dtype)[None, :, None, :] for table in rotary)
        turn = _turn(query.shape[-1], query.dtype, query.device)
        query, key = query * cos + (query @ turn) * sin, key * cos + (key @ turn) * sin
    if mask is not None:
        mask = pad(mask, (0, key.shape[1] - len(mask))).to(query.dtype)
    return _attended(*(x.transpose(1, 2) for x in (query, key, value)), mask=mask).transpose(1, 2).flatten(2)


def _attended(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Attention over (B, heads, tokens, width); a mask is (tokens,)."""
    mixed: Tensor
    if query.is_cuda:
        rows = None if mask is None else mask.expand(1, 1, query.shape[2], -1)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=rows)
    else:  # plain products: the backward of CPU flash attention took a third of a training step at these lengths
        logits = (query * query.shape[-1] ** -0.5) @ key.mT
        mixed = (logits if mask is None else logits + mask).softmax(-1) @ value
    return mixed


def _normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    if x.is_cuda:  # one kernel each way; the CPU's own is slower than this
        return rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps or 1e-6).to(x.dtype)
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + (norm.eps or 1e-6)).to(x.dtype)
    return x * scale * norm.weight.to(x.dtype)


@functools.cache
def _turn(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix that maps (a, b) pairs to (-b, a): (width, width)."""
    matrix = torch.zeros(width, width)
    for i in range(0, width, 2):
        matrix[i + 1, i], matrix[i, i + 1] = -1.0, 1.0
    return matrix.to(device, dtype)


def make_lean(transformer: nn.Module) -> None:
    """Give every attention of a transformer, or of a UNet, the processor that trains fastest."""
    for module in transformer.modules():
        if isinstance(module, FluxAttention | Flux2Attention):
            module.processor = LeanAttention()
        elif isinstance(module, Flux2ParallelSelfAttention):
            module.processor = LeanParallel()
        elif isinstance(module, UNet2DConditionModel) and module.device.type == "cpu":  # for the reason of `_attended`
            module.set_attn_processor(AttnProcessor())
