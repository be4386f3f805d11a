"""A transformer with more input channels that starts as the one it came from."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel


@torch.no_grad()
def widened(transformer: FluxTransformer2DModel, channels: int) -> FluxTransformer2DModel:
    """The same function of the first 64 channels of every token; `channels` more are ignored until trained."""
    own = transformer.config.in_channels
    config = plain_config(transformer) | {"in_channels": own + channels, "out_channels": transformer.out_channels}
    wide = FluxTransformer2DModel.from_config(config)
    state = transformer.state_dict()
    more = torch.zeros(state["x_embedder.weight"].shape[0], channels)
    state["x_embedder.weight"] = torch.cat([state["x_embedder.weight"], more], dim=1)
    wide.load_state_dict(state)
    return wide.train()


def plain_config(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    """Its config without diffusers' notes, one of which makes `from_config` forget what equals a default."""
    return {name: value for name, value in transformer.config.items() if not name.startswith("_")}
