"""The transformer of flux2-shapes, and how it is called where FLUX.1's siblings are."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from models.shapes.flux2.text import SEQUENCE_WIDTH, KleinText, states


def new_transformer() -> Flux2Transformer2DModel:
    """A FLUX.2 as large as flux-shapes, whose weights it starts with (`models.shapes.flux2.graft`)."""
    return Flux2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=SEQUENCE_WIDTH,
        guidance_embeds=False,
        mlp_ratio=4.0,
        axes_dims_rope=(4, 12, 12, 4),
        rope_theta=10_000,
    )


class AsFlux1(nn.Module):
    """A FLUX.2 transformer that is called as FLUX.1's are: positions get a fourth axis, references stand apart.

    Guidance and pooled vectors are passed over; it has no place for them. With a `text`, whose encoder learns with
    it, it is given the numbers of words (B, S) instead of their states.
    """

    def __init__(self, transformer: Flux2Transformer2DModel, text: KleinText | None = None) -> None:
        super().__init__()
        self.transformer, self.encoder = transformer, text.encoder if text else None

    def text_of(self, like: KleinText) -> KleinText:
        """A text with this model's encoder, and the tokenizer of `like`."""
        return like if self.encoder is None else replace(like, encoder=self.encoder)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        **others: Any,
    ) -> tuple[Tensor]:
        """What `models.shapes.flow.velocity` gives and takes."""
        if self.encoder is not None:
            encoder_hidden_states = states(self.encoder, encoder_hidden_states)
        pictures = torch.nn.functional.pad(img_ids, (0, 1)) * img_ids.new_tensor([10.0, 1.0, 1.0, 1.0])
        places = torch.arange(encoder_hidden_states.shape[1], device=img_ids.device)
        words = torch.nn.functional.pad(places[:, None], (3, 0))
        output: tuple[Tensor] = self.transformer(
            hidden_states=hidden_states,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            img_ids=pictures,
            txt_ids=words,
            return_dict=False,
        )
        return output
