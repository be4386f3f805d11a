"""Where the parts of a checkpoint live: on the device, or on the host, from where they come in piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import cpu_offload
from torch import nn

from models.components import weight_bytes
from models.memory import Offload

TEXT_PARTS = frozenset({"text_encoder", "text_encoder_2"})


def place(
    part: str,
    module: nn.Module,
    device: torch.device,
    offload: Offload,
    moved: Callable[[float], None] = lambda fraction: None,
) -> nn.Module:
    """Freeze a part and put it where it belongs. Args: moved: is told the fraction of the weights that is there."""
    module.eval().requires_grad_(False)
    if offload == "text" and part in TEXT_PARTS:
        move(module, torch.device("cpu"), moved)
        stream_from_host(module, device)
    else:
        move(module, device, moved)
    return module


def move(module: nn.Module, device: torch.device, moved: Callable[[float], None]) -> None:
    """`module.to(device)` layer by layer: what has been moved is known, and nothing large exists twice.

    Dtypes stay: a class may keep some of its parameters in float32.
    """
    total, done = max(1, weight_bytes(module)), 0
    for layer in module.modules():
        if not any(layer.children()):
            done += weight_bytes(layer)
            layer.to(device)
            moved(min(1.0, done / total))
    module.to(device)


def stream_from_host(module: nn.Module, device: torch.device) -> None:
    """Keep the weights in host memory; every layer brings its own to the device for its forward and drops them again.

    The device then holds one layer at a time. Between forwards the parameters are on `meta`, without storage.
    """
    cpu_offload(module, execution_device=device)
