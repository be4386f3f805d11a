"""One request through diffusers' own pipeline: slow, obvious, the oracle for tests and benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.components import FluxComponents
from pipelines.params import GenerationParams


def rounded_up(side: int, multiple: int) -> int:
    """The side that is drawn for a wanted one."""
    return -(-side // multiple) * multiple


@torch.inference_mode()
def reference_pictures(components: FluxComponents, params: GenerationParams) -> list[NDArray[np.uint8]]:
    """Every picture of the request as (height, width, 3) uint8 of the size the model draws, before any crop."""
    pipeline = components.pipeline()
    pictures = []
    for seed in params.seeds:
        output = pipeline(
            params.prompt,
            height=rounded_up(params.height, components.size_multiple),
            width=rounded_up(params.width, components.size_multiple),
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            max_sequence_length=min(params.max_sequence_length, components.spec.max_sequence_length),
            generator=torch.Generator().manual_seed(seed),
        )
        pictures.append(np.asarray(output.images[0]))
    return pictures
