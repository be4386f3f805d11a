"""The transformer of flux2-shapes, and how it learns with the losses that FLUX.1's siblings have."""

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from models.shapes.flow import Batch, random_sigmas, velocity
from models.shapes.flux2.text import SEQUENCE_WIDTH


def new_transformer(*, width: int = 128, double: int = 2, single: int = 4) -> Flux2Transformer2DModel:
    """A small FLUX.2, gates and output at zero so that every block starts as the identity."""
    transformer = Flux2Transformer2DModel(
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=SEQUENCE_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 8, 8, 8),
    )
    modulations = (
        transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt,
        transformer.single_stream_modulation,
        transformer.norm_out,
    )
    for linear in (*(each.linear for each in modulations), transformer.proj_out):
        nn.init.zeros_(linear.weight)
    return transformer


class AsFlux1(nn.Module):
    """A FLUX.2 transformer that is called as FLUX.1's are: positions get a fourth axis, references stand apart.

    Guidance and pooled vectors are passed over; it has no place for them.
    """

    def __init__(self, transformer: Flux2Transformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        **others: Any,
    ) -> tuple[Tensor]:
        """What `models.shapes.flow.velocity` gives and takes."""
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


def taught_loss(model: nn.Module, teacher: nn.Module, batch: Batch, shown: Batch, guidance: float) -> Tensor:
    """Learn to draw as a FLUX.1 with a guidance input does at one scale, from its velocities.

    They are means where true velocities are single draws, so this learns in fewer steps, and guidance with it.
    Args: shown: the batch as the teacher reads it.
    """
    clean = batch.latents
    sigma = random_sigmas(len(clean), clean.shape[1], device=clean.device)
    noisy = clean + sigma.view(-1, 1, 1) * (torch.randn_like(clean) - clean)
    with torch.no_grad():
        target = velocity(teacher, noisy, sigma, shown, torch.full_like(sigma, guidance)).float()
    guess = velocity(model, noisy, sigma, batch, None)
    return batch.mean((guess.float() - target).square()).mean()
