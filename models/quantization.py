"""Ways to shrink a transformer's linears: what each needs and what it costs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.accelerator import Accelerator
from models.errors import LoadError
from models.float8 import to_float8
from models.packed import is_packed


def _leave(transformer: nn.Module, accelerator: Accelerator) -> None:
    """Full precision."""


def _fp8(transformer: nn.Module, accelerator: Accelerator) -> None:
    """Float8 weights and activations in the blocks, scaled per row, so that no request rescales its neighbours.

    Needs a GPU of compute capability 8.9 or more to be worth it; a CPU computes the same, slower than in full
    precision. LPIPS 0.124 on schnell as torchao reports for its twin of this scheme.
    """
    if accelerator.kind != "cpu" and not accelerator.has_float8:
        raise LoadError(
            f"quantization fp8 needs a GPU of compute capability 8.9 or later, not {accelerator.name}; "
            "use --quantization none."
        )
    if is_packed(transformer):
        raise LoadError("the file's weights are packed already; use --quantization none.")
    to_float8(transformer, is_insensitive)


def is_insensitive(name: str) -> bool:
    """Whether the linear of this name may be rounded: the one place that says so.

    Exact stay the modulation (".norm"), one vector a picture whose errors reach every token, and all outside the
    blocks: embedders, norm_out, proj_out.
    """
    return ("transformer_blocks." in name or "mode_blocks." in name) and ".norm" not in name


SCHEMES: dict[str, Callable[[nn.Module, Accelerator], None]] = {"none": _leave, "fp8": _fp8}


def quantize(transformer: nn.Module, scheme: str, accelerator: Accelerator) -> None:
    """Apply `scheme` in place. Raises: LoadError if it is unknown or cannot run on this device."""
    if scheme not in SCHEMES:
        raise LoadError(f"unknown quantization {scheme!r}: give one of {', '.join(SCHEMES)}.")
    SCHEMES[scheme](transformer, accelerator)
