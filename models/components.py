"""The loaded parts of one FLUX checkpoint, as diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn

from models.registry import ModelSpec


@dataclass(frozen=True)
class SafetyModel:
    """A picture classifier and what prepares pictures for it; `pipelines.pictures.safety` knows the layouts."""

    model: Any
    image_processor: Any


class Components:
    """What the components of every family have.

    Attributes: WEIGHTS: names of the parts with weights. CORE: of the one that every step runs.
    """

    WEIGHTS: ClassVar[tuple[str, ...]]
    CORE: ClassVar[str] = "transformer"
    safety: SafetyModel | None

    @property
    def core(self) -> Any:
        """What every step runs."""
        return getattr(self, self.CORE)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.core.device
        return device

    @property
    def guidance_embeds(self) -> bool:
        return bool(self.core.config.guidance_embeds)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The weights by part name."""
        parts: dict[str, nn.Module] = {name: getattr(self, name) for name in self.WEIGHTS}
        return parts | ({"safety_checker": self.safety.model} if self.safety else {})


@dataclass(frozen=True)
class FluxComponents(Components):
    """Everything one checkpoint needs, on one device, in one dtype, frozen in eval mode.

    Tokenizers and encoders are what the checkpoint's `model_index.json` names; two checkpoints may share them.
    """

    WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")

    spec: ModelSpec
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    text_encoder_2: nn.Module
    tokenizer: Any
    tokenizer_2: Any
    sigma_config: Mapping[str, Any]
    safety: SafetyModel | None = None
    load_s: float = 0.0
    shared: frozenset[str] = field(default_factory=frozenset)
    """Names of the parts that another loaded checkpoint brought along."""

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.text_encoder_2.dtype  # type: ignore[assignment]
        return dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Sides of drawn pictures are multiples of this: one token is 2 x 2 latent cells."""
        return self.vae_scale_factor * 2

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def pipeline(self) -> FluxPipeline:
        """Diffusers' own pipeline over the same modules: the oracle of tests and benchmarks."""
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(self.sigma_config)),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers; what is shared counts once, what waits on the host not at all."""
    every = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    tensors = {t.data_ptr(): t.nbytes for t in every if not t.is_meta}
    return sum(tensors.values())
