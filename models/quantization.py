"""Ways to shrink a transformer's linears: what each needs and what it costs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.checkpoint_files import LoadError


def _leave(module: nn.Module, kind: str) -> None:
    """Full precision."""


def _fp8(module: nn.Module, kind: str) -> None:
    """Float8 weights and activations, scaled per row, so that no request rescales its neighbours.

    Needs a GPU of compute capability 8.9 or more and torchao. LPIPS 0.124 on schnell as torchao reports.
    """
    if kind != "cuda":
        raise LoadError("quantization fp8 needs a CUDA device; use --quantization none.")
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError as exc:
        raise LoadError("quantization fp8 needs the package torchao: pip install torchao.") from exc
    quantize_(module, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=_is_block_linear)


def _is_block_linear(module: nn.Module, name: str) -> bool:
    # Modulation (".norm...") stays exact: it is one vector an image, and errors there reach every token.
    return isinstance(module, nn.Linear) and "transformer_blocks" in name and ".norm" not in name


SCHEMES: dict[str, Callable[[nn.Module, str], None]] = {"none": _leave, "fp8": _fp8}


def quantize(transformer: nn.Module, scheme: str, kind: str) -> None:
    """Apply `scheme` in place. Raises: LoadError if it is unknown or cannot run on this kind of device."""
    if scheme not in SCHEMES:
        raise LoadError(f"unknown quantization {scheme!r}: give one of {', '.join(SCHEMES)}.")
    SCHEMES[scheme](transformer, kind)
