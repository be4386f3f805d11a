"""One request through diffusers' own pipeline: the oracle for tests and benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.components import FluxComponents
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.protocol.params import GenerationParams


@torch.inference_mode()
def reference_pictures(components: FluxComponents, params: GenerationParams) -> list[NDArray[np.uint8]]:
    """Every picture of the request as (height, width, 3) uint8 of the size the model draws, before any crop."""
    pipeline = components.pipeline()
    limits = Flux1Limits.of(components)
    height, width = limits.drawn(params)
    pictures = []
    for seed in params.seeds:
        output = pipeline(
            params.prompt,
            height=height,
            width=width,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            max_sequence_length=limits.text_tokens(params),
            generator=torch.Generator().manual_seed(seed),
        )
        pictures.append(np.asarray(output.images[0]))
    return pictures
