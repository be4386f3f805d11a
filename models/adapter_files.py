"""Is this file a LoRA that could be read? Decided from its header alone: no torch, no pickle, nothing executed.

Node and worker both ask: the node before it keeps a file that somebody named, the worker before it reads one.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 8 << 20
"""A LoRA over every linear of FLUX.1, text encoders too, has a header of 200 kB."""
MAX_TENSORS = 20_000

_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
_METADATA = "__metadata__"

_OTHER_KINDS = (
    ("dora_scale", "is a DoRA, whose magnitudes need the merged weights"),
    ("lora_magnitude_vector", "is a DoRA, whose magnitudes need the merged weights"),
    ("lokr_", "is a LoKr"),
    ("hada_", "is a LoHa"),
    ("oft_", "is an OFT adapter"),
    ("lora_mid", "is a LoCon for convolutions"),
    ("lora_embedding", "changes word embeddings"),
    ("query_norm.scale", "is a Control LoRA, which widens the model's input; serve its full checkpoint instead"),
)
"""Parts of keys that say what a file is, if it is not a plain LoRA."""
_FOREIGN = (
    ("input_blocks", "SDXL or Stable Diffusion"),
    ("down_blocks", "SDXL or Stable Diffusion"),
    ("lora_te2_", "SDXL"),
    ("joint_blocks", "Stable Diffusion 3"),
)


class AdapterError(ValueError):
    """The file is no LoRA that can be used here; the message is one sentence for whoever named it."""


def check_adapter_file(file: Path) -> None:
    """Header, sizes and kind of a LoRA. Raises: AdapterError, OSError.

    Source: the safetensors format, https://huggingface.co/docs/safetensors.
    """
    header, data_bytes = _header(file)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise AdapterError("its header is damaged: the metadata is not a table")
    if not 0 < len(header) <= MAX_TENSORS:
        raise AdapterError(f"it holds {len(header)} tensors; a LoRA has 1 to {MAX_TENSORS}")
    spans = sorted(_span(key, entry) for key, entry in header.items())
    at = 0
    for start, stop in spans:
        if start != at:
            raise AdapterError("its header is damaged: the tensors do not follow one another")
        at = stop
    if at != data_bytes:
        raise AdapterError(f"it is cut short or damaged: {data_bytes} bytes of weights, {at} announced")
    _check_kind(header)


def metadata_of(file: Path) -> dict[str, str]:
    """The texts in the header of a checked file."""
    found: dict[str, str] = _header(file)[0].get(_METADATA, {})
    return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header and the bytes that follow it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise AdapterError("it is not a safetensors file; pickled weights (.pt, .ckpt, .bin) are never read")
        if length > MAX_HEADER_BYTES:
            raise AdapterError(f"its header has {length} bytes; a LoRA's has at most {MAX_HEADER_BYTES}")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as exc:
            raise AdapterError(
                "it is not a safetensors file; pickled weights (.pt, .ckpt, .bin) are never read"
            ) from exc
    if not isinstance(header, dict):
        raise AdapterError("its header is damaged: it is not a table")
    return header, size - 8 - length


def _span(key: str, entry: Any) -> tuple[int, int]:
    """First and last byte of a tensor whose dtype, shape and size agree."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        is_sound = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    except (TypeError, KeyError, ValueError):
        is_sound = False
    if not is_sound or len(shape) > 8:
        raise AdapterError(f"its header is damaged at the key {shown(key)}")
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        raise AdapterError(f"the key {shown(key)} has dtype {shown(str(dtype))}; one of {', '.join(_WIDTHS)} is needed")
    if stop - start != math.prod(shape) * _WIDTHS[dtype]:
        raise AdapterError(f"its header is damaged: the size of {shown(key)} does not fit its shape")
    return start, stop


def _check_kind(header: Mapping[str, Any]) -> None:
    for key in header:
        for part, kind in _OTHER_KINDS:
            if part in key:
                raise AdapterError(f"it {kind} (key {shown(key)}); plain LoRAs are served")
        for part, family in _FOREIGN:
            if part in key:
                raise AdapterError(f"it belongs to {family}, not to FLUX: no layer of FLUX fits its key {shown(key)}")
    if not any("lora" in key.lower() for key in header):
        raise AdapterError(f"it is not a LoRA: none of its keys says so, the first is {shown(next(iter(header)))}")


def shown(key: str) -> str:
    """A key as a sentence may repeat it: printable, not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in key)
    return plain if len(plain) <= 120 else plain[:117] + "..."
