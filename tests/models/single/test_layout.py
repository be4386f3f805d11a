"""Names of Black Forest Labs' layout against diffusers' own converter, at FLUX.1's width."""

from __future__ import annotations

import gguf
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

from models.packed import GgufWeight, PackedLinear
from models.single.gguf import packed
from models.single.layout import diffusers_transformer
from tests.models.single.writers import bfl, prefixed, random_blocks


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


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_gguf_blocks_of_true_width_are_divided_into_diffusers_numbers(kind: str) -> None:
    """The widest joined matrix of a double block; diffusers unpacks first and divides then."""
    wanted = gguf.GGMLQuantizationType[kind]
    blocks = torch.from_numpy(random_blocks(wanted, (9216, 3072), seed=2))
    whole = dequantize_gguf_tensor(GGUFParameter(blocks, quant_type=wanted)).reshape(9216, 3072)
    name = "double_blocks.0.img_attn.qkv.weight"
    ours = diffusers_transformer({name: packed(name, blocks, wanted, (9216, 3072))})
    tokens = torch.randn(3, 3072, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    for part, rows in zip(("to_q", "to_k", "to_v"), whole.chunk(3), strict=True):
        mine = ours[f"transformer_blocks.0.attn.{part}.weight"]
        assert isinstance(mine, GgufWeight)
        assert torch.equal(mine.unpack(torch.float32), rows.float())
        assert torch.equal(PackedLinear(mine, None)(tokens), tokens @ rows.to(torch.bfloat16).T)
