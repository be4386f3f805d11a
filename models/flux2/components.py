"""The loaded parts of one FLUX.2 checkpoint, as diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import nn

from models.components import Components, SafetyModel
from models.flux2.architectures import TURBO_SIGMAS
from models.flux2.text_encoder import QWEN3, Reading
from models.registry import ModelSpec


@dataclass(frozen=True)
class Flux2Components(Components):
    """Everything one checkpoint needs, on one device, in one dtype, frozen in eval mode.

    Args:
        is_distilled: whether it draws without a second, unprompted forward.
        passes_references_once: whether it was trained to look at pictures that see neither prompt nor step.
        reading: how its text encoder is asked.
    """

    WEIGHTS = ("transformer", "vae", "text_encoder")

    spec: ModelSpec
    transformer: Flux2Transformer2DModel
    vae: AutoencoderKLFlux2
    text_encoder: nn.Module
    tokenizer: Any
    sigma_config: Mapping[str, Any]
    is_distilled: bool
    passes_references_once: bool = False
    reading: Reading = QWEN3
    safety: SafetyModel | None = None
    load_s: float = 0.0
    shared: frozenset[str] = field(default_factory=frozenset)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.text_encoder.dtype  # type: ignore[assignment]
        return dtype

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels that it was distilled to; none for even ones, of any number."""
        return TURBO_SIGMAS if self.spec.variant == "flux2-turbo" else ()

    @property
    def size_multiple(self) -> int:
        """Sides of drawn pictures are multiples of this: one token is 2 x 2 latent cells."""
        return int(2 ** len(self.vae.config.block_out_channels))

    @property
    def channels(self) -> int:
        """Of one token."""
        return int(self.transformer.config.in_channels)

    def pipeline(self) -> Flux2KleinPipeline | Flux2KleinKVPipeline | Flux2Pipeline:
        """Diffusers' own pipeline over the same modules: the oracle of tests and benchmarks."""
        is_klein = self.reading is QWEN3
        klein: Any = Flux2KleinKVPipeline if self.passes_references_once else Flux2KleinPipeline
        kind: Any = klein if is_klein else Flux2Pipeline
        pipeline = kind(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(self.sigma_config)),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            **({"is_distilled": self.is_distilled} if is_klein else {}),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
