"""Which model, in which form and with which flags, fits cards of the usual sizes: counted, not tried. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.architectures import ARCHITECTURES
from models.counts import AnyArchitecture, counts_of
from models.memory import (
    FP8_CAPABILITY,
    MODULATION_WAITS,
    PRESETS,
    Preset,
    need,
    presumed_architecture,
    recommend,
    streamed_bytes,
)
from models.registry import REGISTRY

_USABLE = 0.96
"""Share of a card's nominal memory; drivers and displays take the rest."""
SIZES_GB = (6, 8, 10, 12, 16, 24, 32, 48, 80)
_DEV = ARCHITECTURES["random:FLUX.1-dev"]
FIRST_MODELS = ("FLUX.2-dev", "FLUX.2-klein-9B", "FLUX.2-klein-4B")
"""What newcomers are told to take, the largest first; the last, which anybody may use, with whatever flags fit."""
_NO_FP8 = (0, 0)
FIRST_SIZES_GB = (8, 12, 16, 24, 32, 48, 80)
_BITS = {"bfloat16": 16.0, "GGUF Q8_0": 8.5, "float8": 8.0, "GGUF Q5_K": 5.5, "GGUF Q4_K": 4.5, "GGUF Q3_K": 3.4375}
"""A weight's in every form of the transformer, from the roomiest."""
_OFFLOADS = ("none", "text", "text+modulation")
_STREAMED = "text+blocks"
BUS = {"PCIe 3.0": 12e9, "PCIe 4.0": 24e9, "PCIe 5.0": 48e9}
"""Bytes a second that pinned memory passes sixteen lanes, about: three quarters of what the lanes could carry."""

_HEAD = [
    "| card | transformer | flags | needed on the GPU | waits on the host | price over PCIe 4.0 |",
    "|---|---|---|---|---|---|",
]


@dataclass(frozen=True, slots=True)
class Fit:
    """One way to hold a model for pictures of 1024 x 1024. Bytes.

    Args: tiled: decoded in tiles. per_prompt, per_request, per_step: what passes the bus for each new prompt, each
        request when it is admitted, and each step.
    """

    file: str
    flags: str
    device: int
    host: int
    tiled: bool
    per_prompt: int = 0
    per_request: int = 0
    per_step: int = 0

    def price(self, bus: str = "PCIe 4.0") -> str:
        """Seconds, by arithmetic. Copies run beside the steps: a step takes the longer of its work and its copies."""
        named = (("a new prompt", self.per_prompt), ("a request", self.per_request), ("a step", self.per_step))
        return ", ".join(f"{size / BUS[bus]:.2f} s {what}" for what, size in named if size) or "none"


def best_fit(device_bytes: int, arch: AnyArchitecture = _DEV) -> Fit | None:
    """The first that fits, those that are nearest to the published weights first; None if there is none."""
    return next((fit for fit in _ways(arch) if fit.device <= _USABLE * device_bytes), None)


def first_model(size_gb: float, capability: tuple[int, ...], host_bytes: float = math.inf) -> tuple[str, Fit] | None:
    """What a newcomer with this card should take; None if nothing fits but the embedded models.

    The larger ones are taken as they are published, with nothing but their text encoders on the host.
    Args: size_gb: as cards are sold: what one reports is at most so many times 2^30 bytes. host_bytes: free there.
    """
    room, (*large, small) = int(_USABLE * size_gb * 1e9), FIRST_MODELS
    for name in large:
        arch = presumed_architecture(REGISTRY[name])
        preset = recommend(arch, room, _NO_FP8, host_bytes)
        if preset is not None and preset.offload in ("none", "text"):
            return name, _way("bfloat16", preset, False, arch)
    arch = presumed_architecture(REGISTRY[small])
    for tiled in (False, True):
        preset = recommend(arch, room, capability, host_bytes, tiled)
        if preset is not None:
            return small, _way("bfloat16", preset, tiled, arch)
    return None


def first_markdown() -> list[str]:
    """The manual's table for newcomers, a line a card; see `first_model`."""
    head = ["| card | model | flags | needed on the GPU |", "|---|---|---|---|"]
    return head + [_first_line(size) for size in FIRST_SIZES_GB]


def markdown() -> list[str]:
    """The table of the manual, a line a card."""
    return _HEAD + [_line(size) for size in SIZES_GB]


def short_markdown() -> list[str]:
    """The table of the README: cards of equal rows share a line."""
    rows: dict[str, list[str]] = {}
    for size in SIZES_GB:
        rows.setdefault(_line(size).split(" | ", 1)[1], []).append(f"{size} GB")
    return _HEAD + [f"| {', '.join(sizes)} | {row}" for row, sizes in rows.items()]


def streamed_markdown() -> list[str]:
    """What blocks that wait on the host need and cost, a line a form of the transformer."""
    head = [
        f"| transformer | needed on the GPU | in tiles | waits on the host | passes in a step | {' | '.join(BUS)} |",
        "|---|---|---|---|---|" + "---|" * len(BUS),
    ]
    return head + [_streamed_line(file, bits) for file, bits in _BITS.items()]


def _streamed_line(file: str, bits: float) -> str:
    whole, tiled = (_way(file, Preset("none", _STREAMED, bits=bits), tiled) for tiled in (False, True))
    sizes = [_gb(size) for size in (whole.device, tiled.device, whole.host, whole.per_step)]
    seconds = [f"{whole.per_step / speed:.2f} s" for speed in BUS.values()]
    return f"| {' | '.join([file, *sizes, *seconds])} |"


def _line(size: int) -> str:
    fit = best_fit(size * 10**9)
    assert fit is not None
    tiled = ", decoded in tiles" if fit.tiled else ""
    flags = f"`{fit.flags}`" if fit.flags else "none"
    return f"| {size} GB | {fit.file} | {flags}{tiled} | {_gb(fit.device)} | {_gb(fit.host)} | {fit.price()} |"


def _first_line(size: int) -> str:
    chosen = first_model(size, FP8_CAPABILITY)
    assert chosen is not None
    name, fit = chosen
    return f"| {size} GB | `{name}` | {f'`{fit.flags}`' if fit.flags else 'none'} | {_gb(fit.device)} |"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _ways(arch: AnyArchitecture) -> Iterator[Fit]:
    for offloads in (_OFFLOADS, (_STREAMED,)):
        for file, bits in _BITS.items():
            for tiled in (False, True):
                for preset in PRESETS:
                    if preset.quantization == "none" and preset.offload in offloads and (preset.replay or bits == 16):
                        yield _way(file, replace(preset, bits=bits), tiled, arch)


def _way(file: str, preset: Preset, tiled: bool, arch: AnyArchitecture = _DEV) -> Fit:
    needed, counts, itemsize = need(arch, preset), counts_of(arch), preset.bits / 8
    waiting = int(counts.modulation * itemsize) if preset.offload in MODULATION_WAITS else 0
    streamed = streamed_bytes(counts, preset.block_itemsize) if preset.is_streamed else 0
    text = 0 if preset.offload == "none" else need(arch, Preset("none", "text")).host
    device = needed.in_tiles if tiled else needed.device
    return Fit(file, preset.flags, device, needed.host, tiled, text, waiting, streamed)
