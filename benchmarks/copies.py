"""Copies of a model's parts for measurements that change them, so that one device holds one copy at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.accelerator import Accelerator
from models.components import FluxComponents

M = TypeVar("M", bound=nn.Module)


def copied(module: M, device: torch.device) -> M:
    """A copy on the device, tensor by tensor: nothing is held twice on the way."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): _moved(tensor, device) for tensor in tensors})


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory formats are kept; a copy even where the device is the same."""
    moved = tensor.detach().to(device, copy=True)
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def set_aside(components: FluxComponents, accelerator: Accelerator, *names: str) -> FluxComponents:
    """The components with these parts in the host's memory, out of which each measurement takes its own copy.

    On a card of 80 GB FLUX.1 and two copies of its transformer would not fit.
    """
    if accelerator.kind == "cpu":
        return components
    parts: dict[str, Any] = {name: components.modules[name].to("cpu") for name in names}
    accelerator.release_cached_memory()
    return replace(components, **parts)


def with_own_weights(components: FluxComponents, accelerator: Accelerator) -> FluxComponents:
    """The components with a transformer and a VAE on the device that may be changed."""
    copies: dict[str, Any] = {
        name: copied(components.modules[name], accelerator.device) for name in ("transformer", "vae")
    }
    return replace(components, **copies)


class _ComputedInFloat32(nn.Module):
    """A linear whose weights are made float32 while it runs, and no longer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._linear.weight.float(), self._linear.bias
        return functional.linear(x.float(), weight, None if bias is None else bias.float())


def in_float32(module: M, device: torch.device) -> M:
    """A copy on the device that computes in float32 over the same weights, which stay as small as they are."""
    copy_ = copied(module, device)
    for name, part in list(copy_.named_modules()):
        if isinstance(part, nn.Linear):
            copy_.set_submodule(name, _ComputedInFloat32(part))
        elif not list(part.children()):
            part.float()
    return copy_
