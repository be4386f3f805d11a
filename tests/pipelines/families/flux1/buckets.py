"""One picture in packs of every size: does its result depend on how many tokens stand beside it?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from pipelines.families.flux1.packed import modulation_width, packed_forward
from pipelines.families.flux1.sampling import position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute


def moved_by_company(
    transformer: FluxTransformer2DModel, compute: Compute, side: int, text_tokens: int, packs: Iterable[int]
) -> dict[int, float]:
    """How far a picture of side x side image tokens moves in packs of so many tokens in all; 0.0 is the same bits.

    A stranger fills each pack, in front of the picture, so that the picture also lies elsewhere.
    """
    parameter = next(transformer.parameters())
    device, dtype = parameter.device, parameter.dtype
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    cos, sin = transformer.pos_embed(position_ids(text_tokens, side, side, torch.float32).to(device))
    rope = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]
    latents, text = noise(side**2, transformer.config.in_channels), noise(text_tokens, transformer.inner_dim)
    modulation = noise(1, modulation_width(transformer))

    def run(stranger: int) -> Tensor:
        here = [stranger] if stranger else []
        layout = PackLayout(
            (*(text_tokens for _ in here), text_tokens),
            (*(tokens - text_tokens for tokens in here), side**2),
            torch.cat([*(rope[:1].expand(tokens, -1, -1) for tokens in here), rope]),
        )
        others = [(noise(tokens - text_tokens, latents.shape[1]), noise(*text.shape)) for tokens in here]
        result = packed_forward(
            transformer,
            layout,
            torch.cat([*(image for image, _ in others), latents]),
            torch.cat([*(words for _, words in others), text]),
            torch.cat([*(noise(*modulation.shape) for _ in here), modulation]),
            compute,
        )
        return result[-(side**2) :].float()

    own = side**2 + text_tokens
    with torch.inference_mode():
        alone = run(0)
        return {tokens: float((run(tokens - own) - alone).abs().max()) for tokens in packs}
