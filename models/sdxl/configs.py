"""The constructor arguments of SDXL's parts, from the shapes of their tensors in the layout of latent diffusion.

What no shape tells is SDXL's own (`models.sdxl.architectures`). No torch.
"""

from __future__ import annotations

import re
from typing import Any

from models.sdxl.architectures import ARCHITECTURES
from models.single import configs
from models.single.configs import Shapes

_SDXL = ARCHITECTURES["random:SDXL"]
_PLAYGROUND = ARCHITECTURES["random:Playground-v2.5"]
_HEAD = 64
"""Width of an attention head, in the UNet and in both encoders."""


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Of UNet2DConditionModel. Raises: KeyError, IndexError if a tensor is missing."""
    halvings = sorted(_numbers(shapes, r"input_blocks\.(\d+)\.0\.op\.weight"))
    layers = halvings[0] - 1 if halvings else _highest(shapes, r"input_blocks\.(\d+)\.")
    firsts = [level * (layers + 1) + 1 for level in range(len(halvings) + 1)]
    channels = tuple(shapes[f"input_blocks.{first}.0.in_layers.2.weight"][0] for first in firsts)
    depths = [1 + _highest(shapes, rf"input_blocks\.{first}\.1\.transformer_blocks\.(\d+)\.") for first in firsts]
    attended = [first for first, depth in zip(firsts, depths, strict=True) if depth]
    attention = f"input_blocks.{attended[0]}.1"
    return _SDXL.unet | {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "attention_head_dim": tuple(max(1, width // _HEAD) for width in channels),  # how many: the name is historical
        "cross_attention_dim": shapes[f"{attention}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[f"{attention}.proj_in.weight"]) == 2,
        "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
    }


def vae_config(shapes: Shapes, is_edm: bool = False) -> dict[str, Any]:
    """Of AutoencoderKL. Args: is_edm: whether its latents are centred and spread as Playground's."""
    own = (_PLAYGROUND if is_edm else _SDXL).vae
    told = {name: own[name] for name in ("scaling_factor", "latents_mean", "latents_std") if name in own}
    return configs.vae_config(shapes) | {"shift_factor": None} | told


def clip_2_config(shapes: Shapes) -> dict[str, Any]:
    """Of CLIPTextConfig, for the second encoder with OpenCLIP's names. Raises: KeyError if a tensor is missing."""
    words, hidden = shapes["token_embedding.weight"]
    return _SDXL.clip_2 | {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": 1 + _highest(shapes, r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, hidden // _HEAD),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "projection_dim": shapes["text_projection"][1],
        "hidden_act": "gelu",
    }


def _highest(shapes: Shapes, pattern: str) -> int:
    """The highest number that a pattern finds in the names; -1 if it finds none."""
    return max(_numbers(shapes, pattern), default=-1)


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    found = (re.match(pattern, name) for name in shapes)
    return {int(match[1]) for match in found if match}
