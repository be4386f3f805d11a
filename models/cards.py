"""Which form of FLUX.1-dev, with which flags, fits cards of the usual sizes: counted, not tried. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.architectures import ARCHITECTURES
from models.memory import (
    TILED_SIDE,
    Preset,
    decode_bytes,
    modulation_parameters,
    need,
    transformer_parameters,
)

_USABLE = 0.96
"""Share of a card's nominal memory; drivers and displays take the rest."""
SIZES_GB = (8, 10, 12, 16, 24, 32, 48, 80)
_DEV = ARCHITECTURES["random:FLUX.1-dev"]
_BITS = {"bfloat16": 16.0, "GGUF Q8_0": 8.5, "float8": 8.0, "GGUF Q5_K": 5.5, "GGUF Q4_K": 4.5, "GGUF Q3_K": 3.4375}
"""A weight's in every form of the transformer, from the roomiest."""
_OFFLOADS = ("none", "text", "text+modulation")


@dataclass(frozen=True, slots=True)
class Fit:
    """One way to hold FLUX.1-dev for pictures of 1024 x 1024. `device`, `host`: bytes. `tiled`: decoded in tiles."""

    file: str
    flags: str
    device: int
    host: int
    tiled: bool


def best_fit(device_bytes: int) -> Fit | None:
    """The first that fits, those that are nearest to the published weights first; None if there is none."""
    return next((fit for fit in _ways() if fit.device <= _USABLE * device_bytes), None)


def markdown() -> list[str]:
    """The table of the manual, a line a card."""
    head = ["| card | transformer | flags | needed on the GPU | waits on the host |", "|---|---|---|---|---|"]
    return head + [_line(size) for size in SIZES_GB]


def _line(size: int) -> str:
    fit = best_fit(size * 10**9)
    assert fit is not None
    tiled = ", decoded in tiles" if fit.tiled else ""
    flags = f"`{fit.flags}`" if fit.flags else "none"
    return f"| {size} GB | {fit.file} | {flags}{tiled} | {fit.device / 1e9:.1f} GB | {fit.host / 1e9:.1f} GB |"


def _ways() -> Iterator[Fit]:
    for file, bits in _BITS.items():
        for tiled in (False, True):
            for offload in _OFFLOADS:
                yield _way(file, bits, offload, tiled)


def _way(file: str, bits: float, offload: str, tiled: bool) -> Fit:
    """bfloat16's need, less what the smaller form saves of what is on either side."""
    preset = Preset("none", offload)
    needed = need(_DEV, preset)
    modulation = modulation_parameters(_DEV.transformer)
    waiting = modulation if offload == "text+modulation" else 0
    saved = (16 - bits) / 8
    device = needed.device - saved * (transformer_parameters(_DEV.transformer) - waiting)
    if tiled:
        device -= decode_bytes(_DEV.vae, 1024, 1024) - decode_bytes(_DEV.vae, TILED_SIDE, TILED_SIDE)
    return Fit(file, preset.flags, int(device), int(needed.host - saved * waiting), tiled)
