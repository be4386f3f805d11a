"""A FLUX narrow enough for tests whose parts have the proportions that a single file's shapes tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from models.architectures import ARCHITECTURES, FLUX_SIGMAS
from models.components import FluxComponents

FLUX = ARCHITECTURES["random:FLUX.1-dev"]


@pytest.fixture(scope="session")
def narrow(tiny: FluxComponents) -> FluxComponents:
    """Heads of 128, 16 latent channels, two blocks of each kind."""
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=True,
    )
    vae = AutoencoderKL(**FLUX.vae | {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1})
    widths = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "projection_dim": 64}
    clip = CLIPTextConfig(
        **FLUX.clip | widths | {"num_hidden_layers": 2, "num_attention_heads": 1}, hidden_act="quick_gelu"
    )
    t5 = T5Config(
        **FLUX.t5 | {"vocab_size": 300, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    parts = {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": T5EncoderModel(t5),
    }
    for part in parts.values():
        part.eval().requires_grad_(False)
    spec = replace(tiny.spec, max_sequence_length=16)
    return replace(tiny, spec=spec, sigma_config=dict(FLUX_SIGMAS), **parts)


@pytest.fixture(scope="session")
def narrow_folder(narrow: FluxComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as diffusers writes it."""
    folder = tmp_path_factory.mktemp("narrow") / "narrow-flux"
    narrow.pipeline().save_pretrained(folder)
    return folder
