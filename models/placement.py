"""Where the parts of a checkpoint live: on the device, or on the host, from where they come in piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate import cpu_offload
from torch import nn

from models.accelerator import host_copy
from models.components import weight_bytes
from models.memory import MODULATION_WAITS, Offload
from models.packed import HostWeight, PackedLinear, PackedWeight

TEXT_PARTS = frozenset({"text_encoder", "text_encoder_2"})
_MODULATION = re.compile(
    r"(transformer_blocks\.\d+\.norm(1|1_context)?|^norm_out|^\w+_stream_modulation(_img|_txt)?)\.linear$"
)


def place(
    part: str,
    module: nn.Module,
    device: torch.device,
    offload: Offload,
    moved: Callable[[float], None] = lambda fraction: None,
    runs_on: torch.device | None = None,
) -> nn.Module:
    """Freeze a part and put it where it belongs.

    Args: moved: is told the fraction of the weights that is there. runs_on: where it will compute, if it goes to
        `device` only to be changed there.
    """
    module.eval().requires_grad_(False)
    if part == "transformer" and offload in MODULATION_WAITS:
        leave_modulation_on_host(module, runs_on or device)
    if offload != "none" and part in TEXT_PARTS:
        move(module, torch.device("cpu"), moved)
        stream_from_host(module, device)
    else:
        move(module, device, moved)
    return module


def leave_modulation_on_host(transformer: nn.Module, device: torch.device) -> None:
    """Put the linears that make AdaLN vectors on the host, pinned where that helps; each passes when it is needed."""
    chosen = [name for name, _ in transformer.named_modules() if _MODULATION.search(name)]
    for name in chosen:
        layer: Any = transformer.get_submodule(name)
        weight = layer.weight
        stored = weight.to("cpu") if isinstance(weight, PackedWeight) else host_copy(weight.data, device)
        bias = None if layer.bias is None else layer.bias.data
        transformer.set_submodule(name, PackedLinear(HostWeight(stored), bias))


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
