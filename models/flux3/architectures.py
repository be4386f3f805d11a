"""FLUX.3 architectures as the constructor arguments of their parts: plain data, no torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.flux2.architectures import VAE

READ_LAYERS = (4, 8, 12, 16, 20, 24, 28, 32)
"""Layers of Qwen3-VL whose results the transformer sees, side by side; nothing after the last is run."""
MODES = 3
"""Text, drawn tokens and pictures to look at: each has blocks and modulation of its own before they meet."""


@dataclass(frozen=True)
class Flux3Architecture:
    """The constructor arguments of every part.

    Args: text: of transformers' Qwen3VLTextConfig. forwards: of the transformer in each step, two with guidance.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    sigmas: dict[str, Any]
    forwards: int = 1


FLUX3_TRANSFORMER: dict[str, Any] = {
    "in_channels": 128,
    "cond_in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 28,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 20480,
    "timestep_channels": 256,
    "mlp_ratio": 3.0,
    "flow_map": False,
}
"""What diffusers' Flux3Transformer2DModel takes for arguments that are not given."""
SIGMAS: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 6.93}
"""As diffusers' Flux3SetTimestepsStep configures its scheduler."""
_TEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": READ_LAYERS[-1],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20]},
    "max_position_embeddings": 262144,
}
"""The words' half of Qwen3-VL-4B as far as it is read."""
_KLEIN = Flux3Architecture(FLUX3_TRANSFORMER | {"flow_map": True}, VAE, _TEXT, SIGMAS)
_TINY = Flux3Architecture(
    transformer=FLUX3_TRANSFORMER
    | {
        "in_channels": 16,
        "cond_in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8 * len(READ_LAYERS),
        "axes_dims_rope": (4, 4, 4, 4),
        "flow_map": True,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
    },
    text={
        "vocab_size": 300,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": READ_LAYERS[-1],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    },
    sigmas=SIGMAS,
)


def _base(arch: Flux3Architecture) -> Flux3Architecture:
    """The same before it was distilled."""
    return replace(arch, transformer=arch.transformer | {"flow_map": False}, forwards=2)


ARCHITECTURES = {
    "random:FLUX.3-klein": _KLEIN,
    "random:FLUX.3-klein-base": _base(_KLEIN),
    "random:tiny-flux3": _TINY,
    "random:tiny-flux3-base": _base(_TINY),
}
