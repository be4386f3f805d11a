"""An adapter that a checkpoint is served with: worked into its weights as they are loaded, once for all requests.

Plain weights take the product in; those that stay as their file packs them get it beside, to be added as they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from models.adapter_files import AdapterError
from models.adapters.reading import LowRank, check_fit, read_adapter
from models.errors import LoadError
from models.packed import PackedLinear
from models.registry import Family


def check_merge(file: Path, family: Family, module: nn.Module) -> None:
    """Every matrix of a LoRA has a layer that it fits; its numbers are not looked at.

    Args: module: may be on `meta`. Raises: LoadError.
    """
    _fitting(file, family, module, checks_values=False)


def merge(file: Path, family: Family, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Add a LoRA to a model in place. Raises: LoadError.

    Args: device: that the sums are computed on, in float32. dtype: of matrices that stay beside packed weights.
    Source: the LoRA paper's W + alpha / rank * B A, as PEFT's `merge`.
    """
    for name, part in _fitting(file, family, module).items():
        layer = module.get_submodule(name)
        if isinstance(layer, PackedLinear):
            home = next((buffer.device for buffer in layer.weight.buffers()), device)
            layer.add(part.down.to(home, dtype), part.up.to(home, dtype))
        else:
            assert isinstance(layer, nn.Linear)
            down, up = (matrix.to(device, torch.float32) for matrix in (part.down, part.up))
            layer.weight.data.copy_(torch.addmm(layer.weight.data.to(device, torch.float32), up, down))


def _fitting(file: Path, family: Family, module: nn.Module, checks_values: bool = True) -> Mapping[str, LowRank]:
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | PackedLinear)}
    try:
        weights = read_adapter(file, family, checks_values)
        for name, part in weights.transformer.items():
            check_fit(name, part, tuple(layers[name].weight.shape) if name in layers else None)
        if weights.text_encoder:
            raise AdapterError("it changes the text encoder, too; give it with each request")
    except AdapterError as exc:
        raise LoadError(f"the LoRA {file.name} cannot be worked into the transformer: {exc}.") from exc
    except OSError as exc:
        raise LoadError(f"the LoRA {file.name} cannot be read ({exc.strerror or exc}).") from exc
    return weights.transformer
