"""LoRAs of FLUX.2 by the names of diffusers' model, whatever trainer wrote them; diffusers' converter knows how."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.loaders.lora_pipeline import Flux2LoraLoaderMixin
from torch import Tensor

_ALPHA = ".alpha"
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight"))
_KOHYA = ".lora_down.weight"


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys as diffusers names them, alphas worked in. Raises: anything, for a layout that is not known."""
    named = {f"transformer.{key}" if key.startswith(_BLOCKS) else key: tensor for key, tensor in tensors.items()}
    if not any(key.endswith(_KOHYA) for key in named):  # of kohya's the converter takes alphas into account
        named = _scaled(named)
    state, _ = Flux2LoraLoaderMixin.lora_state_dict(named, return_lora_metadata=True)
    return dict(state)


def _scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With alpha / rank in the second matrix of every layer that brings an alpha."""
    scaled = {key: tensor for key, tensor in tensors.items() if not key.endswith(_ALPHA)}
    for key in tensors.keys() - scaled.keys():
        layer = key.removesuffix(_ALPHA)
        down, up = next(pair for pair in _PAIRS if layer + pair[0] in scaled)
        scaled[layer + up] = scaled[layer + up].float() * (float(tensors[key]) / scaled[layer + down].shape[0])
    return scaled
