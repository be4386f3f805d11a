"""Which form of FLUX.1-dev, with which flags, fits cards of the usual sizes: counted, not tried. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.architectures import ARCHITECTURES
from models.counts import counts_of
from models.memory import MODULATION_WAITS, PRESETS, TILED_SIDE, Preset, decode_bytes, need, streamed_bytes

_USABLE = 0.96
"""Share of a card's nominal memory; drivers and displays take the rest."""
SIZES_GB = (6, 8, 10, 12, 16, 24, 32, 48, 80)
_DEV = ARCHITECTURES["random:FLUX.1-dev"]
_COUNTS = counts_of(_DEV)
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
    """One way to hold FLUX.1-dev for pictures of 1024 x 1024. Bytes.

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


def best_fit(device_bytes: int) -> Fit | None:
    """The first that fits, those that are nearest to the published weights first; None if there is none."""
    return next((fit for fit in _ways() if fit.device <= _USABLE * device_bytes), None)


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


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _ways() -> Iterator[Fit]:
    for offloads in (_OFFLOADS, (_STREAMED,)):
        for file, bits in _BITS.items():
            for tiled in (False, True):
                for preset in PRESETS:
                    if preset.quantization == "none" and preset.offload in offloads and (preset.replay or bits == 16):
                        yield _way(file, replace(preset, bits=bits), tiled)


def _way(file: str, preset: Preset, tiled: bool) -> Fit:
    needed, itemsize = need(_DEV, preset), preset.bits / 8
    waiting = int(_COUNTS.modulation * itemsize) if preset.offload in MODULATION_WAITS else 0
    streamed = streamed_bytes(_COUNTS, itemsize) if preset.is_streamed else 0
    text = 0 if preset.offload == "none" else need(_DEV, Preset("none", "text")).host
    spared = decode_bytes(_DEV.vae, 1024, 1024) - decode_bytes(_DEV.vae, TILED_SIDE, TILED_SIDE) if tiled else 0
    return Fit(file, preset.flags, needed.device - spared, needed.host, tiled, text, waiting, streamed)
