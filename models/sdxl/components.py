"""The loaded parts of one SDXL checkpoint, as diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn

from models.components import Components, SafetyModel
from models.registry import ModelSpec


@dataclass(frozen=True)
class SdxlComponents(Components):
    """Everything one checkpoint needs, on one device, in one dtype, frozen in eval mode.

    Args:
        scheduler_config: with its `_class_name`.
        empty_is_zero: whether no negative prompt is led away from as zeros, not as an empty text.
    """

    WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
    CORE = "unet"

    spec: ModelSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    text_encoder_2: nn.Module
    tokenizer: Any
    tokenizer_2: Any
    scheduler_config: Mapping[str, Any]
    empty_is_zero: bool = True
    safety: SafetyModel | None = None
    load_s: float = 0.0
    shared: frozenset[str] = field(default_factory=frozenset)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.text_encoder_2.dtype  # type: ignore[assignment]
        return dtype

    @property
    def guidance_embeds(self) -> bool:
        return False

    @property
    def cell(self) -> int:
        """Pixels a latent cell covers along one side; sides of drawn pictures are multiples of it."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self.unet.config.in_channels)

    def new_scheduler(self) -> Any:
        """One that nobody else counts in."""
        kind = getattr(diffusers, self.scheduler_config["_class_name"])
        return kind.from_config(dict(self.scheduler_config))

    def pipeline(self, kind: Any = StableDiffusionXLPipeline) -> Any:
        """A pipeline of diffusers over the same modules: the oracle of tests and benchmarks."""
        pipeline = kind(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=self.new_scheduler(),
            force_zeros_for_empty_prompt=self.empty_is_zero,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
