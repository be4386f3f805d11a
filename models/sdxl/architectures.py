"""SDXL architectures as the constructor arguments of their parts: plain data, no torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

CLIP_TOKENS = 77
"""That both encoders read, padding included."""


@dataclass(frozen=True)
class SdxlArchitecture:
    """The constructor arguments of every part.

    Args:
        clip, clip_2: of transformers' CLIPTextConfig, the second with a projection.
        scheduler: its scheduler_config.json, `_class_name` included.
        forwards: of the UNet in each step, two with guidance.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    clip: dict[str, Any]
    clip_2: dict[str, Any]
    scheduler: dict[str, Any]
    forwards: int = 2


EULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""scheduler_config.json of stable-diffusion-xl-base-1.0."""
TRAILING = EULER | {"timestep_spacing": "trailing"}
"""As SDXL-Lightning was distilled: the first step stands at full noise."""
EDM: dict[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "rho": 7.0,
    "prediction_type": "epsilon",
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
}
"""scheduler_config.json of playground-v2.5-1024px-aesthetic."""

_SDXL = SdxlArchitecture(
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    },
    clip={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": CLIP_TOKENS,
        "projection_dim": 768,
    },
    clip_2={
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": CLIP_TOKENS,
        "projection_dim": 1280,
    },
    scheduler=EULER,
)
_TINY_CLIP = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CLIP_TOKENS,
    "projection_dim": 16,
}
_TINY = SdxlArchitecture(
    unet=_SDXL.unet
    | {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (1, 2),
        "norm_num_groups": 4,
        "cross_attention_dim": 40,
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 48,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    },
    clip=_TINY_CLIP,
    clip_2=_TINY_CLIP | {"hidden_size": 24, "projection_dim": 24},
    scheduler=EULER,
)


def _playground(arch: SdxlArchitecture) -> SdxlArchitecture:
    """Trained by EDM's schedule, its latents centred and scaled by channel."""
    spread = {"latents_mean": (-1.6574, 1.886, -1.383, 2.5155), "latents_std": (8.4927, 5.9022, 6.5498, 5.2299)}
    return replace(arch, scheduler=EDM, vae=arch.vae | {"scaling_factor": 0.5} | spread)


ARCHITECTURES = {
    "random:SDXL": _SDXL,
    "random:SDXL-Lightning": replace(_SDXL, scheduler=TRAILING, forwards=1),
    "random:Playground-v2.5": _playground(_SDXL),
    "random:tiny-sdxl": _TINY,
    "random:tiny-lightning": replace(_TINY, scheduler=TRAILING, forwards=1),
    "random:tiny-playground": _playground(_TINY),
}
