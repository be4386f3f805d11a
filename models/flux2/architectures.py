"""FLUX.2 architectures as the constructor arguments of their parts: plain data, no torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

READ_LAYERS = (9, 18, 27)
"""Layers of [klein]'s text encoder whose results the transformer sees, side by side; nothing after the last is run."""
MISTRAL_LAYERS = (10, 20, 30)
"""The same of [dev]'s."""


@dataclass(frozen=True)
class Flux2Architecture:
    """The constructor arguments of every part.

    Args:
        text: of transformers' Qwen3Config, or of MistralConfig. read: layers of it.
        forwards: of the transformer in each step, two with real guidance.
        passes_references_once: whether references are part of the first step alone.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    sigmas: dict[str, Any]
    forwards: int = 1
    read: tuple[int, ...] = READ_LAYERS
    passes_references_once: bool = False

    @property
    def is_mistral(self) -> bool:
        return self.read == MISTRAL_LAYERS


FLUX2_TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "guidance_embeds": True,
}
"""What diffusers' Flux2Transformer2DModel takes for arguments that are not given: FLUX.2 [dev]."""

SIGMAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
TURBO_SIGMAS = (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)
"""Noise levels that fal's FLUX.2 [dev] Turbo was distilled to, in place of even ones; before the scheduler shifts them,
as diffusers' `sigmas=` takes them. Source: https://huggingface.co/fal/FLUX.2-dev-Turbo."""
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 1024,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


def _qwen3(hidden: int, intermediate: int, heads: int) -> dict[str, Any]:
    """Qwen3 as far as it is read. Args: heads: of queries; there are eight of keys."""
    return {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": READ_LAYERS[-1],
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    }


def _klein(layers: int, single_layers: int, heads: int, text: dict[str, Any]) -> Flux2Architecture:
    transformer = FLUX2_TRANSFORMER | {
        "num_layers": layers,
        "num_single_layers": single_layers,
        "num_attention_heads": heads,
        "joint_attention_dim": len(READ_LAYERS) * text["hidden_size"],
        "guidance_embeds": False,
    }
    return Flux2Architecture(transformer, VAE, text, SIGMAS)


_MISTRAL: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": MISTRAL_LAYERS[-1],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000000.0,
    "max_position_embeddings": 131072,
    "sliding_window": None,
}
"""Mistral Small 3.2 as far as it is read."""
_DEV = Flux2Architecture(FLUX2_TRANSFORMER, VAE, _MISTRAL, SIGMAS, read=MISTRAL_LAYERS)
_KLEIN_4B = _klein(5, 20, 24, _qwen3(2560, 9728, 32))
_KLEIN_9B = _klein(8, 24, 32, _qwen3(4096, 12288, 32))
_TINY = Flux2Architecture(
    transformer=FLUX2_TRANSFORMER
    | {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 4, 4, 4),
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
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": READ_LAYERS[-1],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    sigmas=SIGMAS,
)

_TINY_DEV = replace(
    _TINY,
    transformer=_TINY.transformer | {"guidance_embeds": True},
    text=_TINY.text | {"num_hidden_layers": MISTRAL_LAYERS[-1], "sliding_window": None},
    read=MISTRAL_LAYERS,
)

ARCHITECTURES = {
    "random:FLUX.2-dev": _DEV,
    "random:FLUX.2-klein-4B": _KLEIN_4B,
    "random:FLUX.2-klein-base-4B": replace(_KLEIN_4B, forwards=2),
    "random:FLUX.2-klein-9B": _KLEIN_9B,
    "random:FLUX.2-klein-9B-KV": replace(_KLEIN_9B, passes_references_once=True),
    "random:FLUX.2-klein-base-9B": replace(_KLEIN_9B, forwards=2),
    "random:tiny-klein": _TINY,
    "random:tiny-klein-base": replace(_TINY, forwards=2),
    "random:tiny-klein-kv": replace(_TINY, passes_references_once=True),
    "random:tiny-flux2-dev": _TINY_DEV,
}
