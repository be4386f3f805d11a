"""Pictures as tokens of a prompt, as FluxPriorReduxPipeline makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from models.auxiliaries import ReduxPrior


def picture_tokens(prior: ReduxPrior, images: Sequence[Image.Image]) -> Tensor:
    """(S, joint_dim) tokens, the mean over the pictures: in the pipeline's words, each scaled by one over their number.

    Always one at a time: rows of a larger batch may round differently.
    """
    return (
        torch.stack([_tokens(prior, image) for image in images]).mean(0)
        if len(images) > 1
        else _tokens(prior, images[0])
    )


def _tokens(prior: ReduxPrior, image: Image.Image) -> Tensor:
    encoder = prior.image_encoder
    pixels = prior.image_processor.preprocess(images=image, do_resize=True, return_tensors="pt", do_convert_rgb=True)
    seen = encoder(**pixels.to(device=encoder.device, dtype=encoder.dtype)).last_hidden_state
    tokens: Tensor = prior.image_embedder(seen).image_embeds[0]
    return tokens
