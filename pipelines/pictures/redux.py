"""Pictures as tokens of a prompt, as FluxPriorReduxPipeline makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from models.auxiliaries import ReduxPrior


def pixels_for(prior: ReduxPrior, image: Image.Image) -> Tensor:
    """(1, 3, h, w) what the prior sees of a picture; on the host."""
    prepared = prior.image_processor.preprocess(images=image, do_resize=True, return_tensors="pt", do_convert_rgb=True)
    pixels: Tensor = prepared.pixel_values
    return pixels


def picture_tokens(prior: ReduxPrior, pictures: Sequence[Tensor]) -> Tensor:
    """(S, joint_dim) tokens, the mean over the pictures: in the pipeline's words, each scaled by one over their number.

    Always one at a time: rows of a larger batch may round differently. Args: pictures: from `pixels_for`.
    """
    tokens = [_tokens(prior, pixels) for pixels in pictures]
    return tokens[0] if len(tokens) == 1 else torch.stack(tokens).mean(0)


def _tokens(prior: ReduxPrior, pixels: Tensor) -> Tensor:
    encoder = prior.image_encoder
    seen = encoder(pixels.to(encoder.device, encoder.dtype)).last_hidden_state
    tokens: Tensor = prior.image_embedder(seen).image_embeds[0]
    return tokens
