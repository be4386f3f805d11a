"""The loaded parts of one FLUX.3 checkpoint, as diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks, Flux3DistilledAutoBlocks
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from torch import nn

from models.components import Components, SafetyModel
from models.registry import ModelSpec


class _Processor:
    """What diffusers' pipeline asks of Qwen3-VL's processor. Args: tokenizer: which has its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.apply_chat_template = tokenizer.apply_chat_template


@dataclass(frozen=True)
class Flux3Components(Components):
    """Everything one checkpoint needs, on one device, in one dtype, frozen in eval mode."""

    WEIGHTS = ("transformer", "vae", "text_encoder")

    spec: ModelSpec
    transformer: Flux3Transformer2DModel
    vae: AutoencoderKLFlux2
    text_encoder: nn.Module
    tokenizer: Any
    sigma_config: Mapping[str, Any]
    safety: SafetyModel | None = None
    load_s: float = 0.0
    shared: frozenset[str] = field(default_factory=frozenset)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.text_encoder.dtype  # type: ignore[assignment]
        return dtype

    @property
    def is_flow_map(self) -> bool:
        """Whether it was distilled to jump to a given noise level: few steps, no guidance."""
        return bool(self.transformer.config.flow_map)

    @property
    def guidance_embeds(self) -> bool:
        return False

    @property
    def size_multiple(self) -> int:
        """Sides of drawn pictures are multiples of this: one token is 2 x 2 latent cells."""
        return int(2 ** len(self.vae.config.block_out_channels))

    @property
    def channels(self) -> int:
        """Of one token."""
        return int(self.transformer.config.in_channels)

    def pipeline(self, guidance_scale: float = 3.5) -> Any:
        """Diffusers' own modular pipeline over the same modules: the oracle of tests and benchmarks.

        Its prompt upsampler, another model, is left out: prompts are encoded as given.
        """
        blocks = (Flux3DistilledAutoBlocks if self.is_flow_map else Flux3AutoBlocks)()
        blocks.sub_blocks.pop("prompt_upsampler")
        pipeline: Any = blocks.init_pipeline()
        guider = {} if self.is_flow_map else {"guider": ClassifierFreeGuidance(guidance_scale=guidance_scale)}
        pipeline.update_components(
            text_encoder=self.text_encoder,
            tokenizer=_Processor(self.tokenizer),
            vae=self.vae,
            transformer=self.transformer,
            image_processor=Flux3ImageProcessor(vae_scale_factor=self.size_multiple),
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(self.sigma_config)),
            **guider,
        )
        return pipeline
