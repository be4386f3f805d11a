"""Names of Black Forest Labs' layout against diffusers' own converter, at FLUX.1's width."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from models.single.layout import diffusers_transformer
from tests.models.single.writers import bfl, prefixed


def test_a_block_of_true_width_is_what_diffusers_makes_of_it() -> None:
    with torch.device("meta"):
        shapes = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).state_dict()
    generator = torch.Generator().manual_seed(0)
    # One number a row: a row that goes astray is seen, and 0.7 GB of random numbers are not needed.
    state = {
        name: torch.randn(tensor.shape[0], generator=generator, dtype=torch.bfloat16)
        .view(-1, *[1] * (tensor.ndim - 1))
        .expand(tensor.shape)
        for name, tensor in shapes.items()
    }
    file = bfl(state)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(prefixed("model.diffusion_model.", file))
    ours = diffusers_transformer(file)
    assert ours.keys() == theirs.keys() == state.keys()
    for name, tensor in theirs.items():
        mine = ours[name]
        assert isinstance(mine, torch.Tensor)
        assert mine.shape == tensor.shape
        assert torch.equal(
            mine.reshape(tensor.shape[0], -1)[:, 0].to(tensor.dtype), tensor.reshape(tensor.shape[0], -1)[:, 0]
        )
