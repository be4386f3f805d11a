"""How much memory a checkpoint needs, counted from its architecture, and which settings make it fit. No torch.

Weights are exact. What a step and a decode need beside them is an estimate for one picture of 1024 x 1024, held to what
the modules really allocate by `tests/models/test_memory.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from models.counts import AnyArchitecture, Counts, counts_of
from models.flops import architecture_of, random_architecture
from models.flux3.architectures import Flux3Architecture
from models.registry import REGISTRY, ModelSpec
from models.sdxl.architectures import SdxlArchitecture
from models.tuning import RECORDED_TOKENS

Offload = Literal["none", "text", "text+modulation", "text+blocks"]
"""What waits in the host's memory until it is used: nothing, the text encoders, the transformer's modulation too, or
besides the matrices of all its blocks.

Modulation is 27 % of FLUX.1's transformer and is read once a request, when it is admitted; blocks pass in every step.
"""
MODULATION_WAITS: tuple[Offload, ...] = ("text+modulation", "text+blocks")
OFFLOADS: tuple[Offload, ...] = get_args(Offload)

_STEP_VECTORS = 26
"""Vectors of the model's width that a joint token holds at a step's fullest moment, at two bytes a number."""
_UNET_PLANES = 16
"""Planes of the widest full-size activation that a UNet holds at its fullest moment, those kept for its second half
included; attention's products are never held."""
_DECODE_PLANES = 5
"""Planes of the widest full-size activation that a decode holds at its fullest moment."""
TILED_SIDE = 512
"""Pixels along a side of what is decoded at once where the whole picture does not fit."""
_LAUNCHES = 600_000_000
"""What recorded steps hold besides the tensors of the largest of them. With it an H200 used what is counted
(benchmarks/results/h200-2026-11-27-replay)."""
_RESERVE = 1_500_000_000
"""CUDA's own context and libraries, kept prompts, and what the allocator cannot use for being cut up."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One way to hold a checkpoint: values of --quantization and --offload.

    Args:
        replay: whether steps are recorded, as far as they can be.
        bits: of a weight of the transformer, 16 if it is not packed in its file.
    """

    quantization: str
    offload: str
    replay: bool = True
    bits: float = 16

    @property
    def is_streamed(self) -> bool:
        """Whether the transformer's blocks pass in every step."""
        return self.offload == "text+blocks"

    @property
    def records(self) -> bool:
        """Whether steps are recorded: not where weights come and go, or are unpacked as they are read."""
        return self.replay and not self.is_streamed and self.bits == 16

    @property
    def block_itemsize(self) -> float:
        """Bytes that a weight of the blocks takes."""
        return 1.0 if self.quantization == "fp8" else self.bits / 8

    @property
    def flags(self) -> str:
        """What to type for it; empty for the defaults."""
        given = (("--quantization", self.quantization), ("--offload", self.offload))
        flags = [f"{flag} {value}" for flag, value in given if value != "none"]
        return " ".join(flags if self.replay else [*flags, "--tuning replay=off"])


PRESETS = tuple(
    Preset(quantization, offload, replay)
    for offloads, replays in ((OFFLOADS[:-1], (True, False)), (OFFLOADS[-1:], (True,)))
    for quantization in ("none", "fp8")
    for offload in offloads
    for replay in replays
)
"""From the roomiest to the tightest; those that do not change pictures come before those that do, and what moves all
blocks in every step comes last."""

FP8_CAPABILITY = (8, 9)
"""Compute capability from which on float8 matrix products exist."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. `weights`, `working`: on the device. `host`: weights that wait in the machine's memory.

    tight: as `working`, where the picture is decoded in tiles because it does not fit whole.
    """

    weights: int
    working: int
    host: int
    tight: int

    @property
    def device(self) -> int:
        return self.weights + self.working

    @property
    def in_tiles(self) -> int:
        """As `device`, decoded in tiles."""
        return self.weights + self.tight


def need(arch: AnyArchitecture, preset: Preset, width: int = 1024, height: int = 1024, text_tokens: int = 512) -> Need:
    """What one checkpoint in half precision needs to draw one picture at a time of so many pixels."""
    held, whole = part_bytes(arch, preset), part_bytes(arch, replace(preset, offload="none"))
    host = sum(whole.values()) - sum(held.values())
    if preset.is_streamed:  # the host holds those blocks as well that are on the device
        host += buffer_bytes(counts_of(arch), preset.block_itemsize)
    working, tight = (working_bytes(arch, preset, width, height, text_tokens, tiled) for tiled in (False, True))
    return Need(sum(held.values()), working, host, tight)


def part_bytes(arch: AnyArchitecture, preset: Preset) -> dict[str, int]:
    """What each part's weights take of the device, in half precision but for a packed transformer."""
    counts, itemsize = counts_of(arch), preset.bits / 8
    # Row-wise scales cost four bytes a row, which is below a thousandth of the row: left out.
    shrunk = sum(counts.blocks) * (itemsize - preset.block_itemsize)
    if preset.offload in MODULATION_WAITS:
        shrunk += itemsize * counts.modulation
    if preset.is_streamed:
        shrunk += streamed_bytes(counts, preset.block_itemsize) - buffer_bytes(counts, preset.block_itemsize)
    text = {part: 0 if preset.offload != "none" else 2 * count for part, count in counts.text.items()}
    return text | {"vae": 2 * counts.vae, "transformer": round(itemsize * counts.transformer - shrunk)}


def working_bytes(
    arch: AnyArchitecture, preset: Preset, width: int, height: int, text_tokens: int = 512, is_tiled: bool = False
) -> int:
    """What the device holds beside weights while one picture is drawn. Args: is_tiled: decoded in tiles."""
    # A text encoder that waits on the host comes in piece by piece; its largest piece is the embedding of its words,
    # which is larger than any of modulation's.
    piece = 2 * counts_of(arch).words if preset.offload != "none" else 0
    steps = step_bytes(arch, width, height, text_tokens) + recorded_bytes(arch, preset)
    decoded = (min(width, TILED_SIDE), min(height, TILED_SIDE)) if is_tiled else (width, height)
    return piece + steps + decode_bytes(arch.vae, *decoded) + _RESERVE


def recommend(
    arch: AnyArchitecture,
    device_bytes: int,
    capability: tuple[int, ...],
    host_bytes: float = math.inf,
    is_tiled: bool = False,
) -> Preset | None:
    """The first preset that fits into a device and leaves no more on the host than is free there; None without one.

    Args: is_tiled: decoded in tiles.
    """
    for preset in PRESETS:
        if preset.quantization == "fp8" and capability < FP8_CAPABILITY:
            continue
        needed = need(arch, preset)
        if (needed.in_tiles if is_tiled else needed.device) <= device_bytes and needed.host <= host_bytes:
            return preset
    return None


def presumed_architecture(spec: ModelSpec) -> AnyArchitecture:
    """The architecture of a checkpoint without asking any hub: what is no folder here is taken for FLUX.1's, and what
    belongs to another checkpoint for that one's.

    Raises: LoadError if its folder is gone; KeyError for an unknown random architecture.
    """
    if spec.base is not None:
        return presumed_architecture(REGISTRY[spec.base])
    if spec.source.startswith("random:") or Path(spec.source).is_absolute():
        return architecture_of(spec)
    if spec.family == "sdxl":
        return random_architecture("random:SDXL")
    if spec.family == "flux3":
        return random_architecture(f"random:FLUX.3-{spec.variant.removeprefix('flux3-')}")
    if spec.variant in ("flux2-dev", "flux2-turbo"):
        return random_architecture("random:FLUX.2-dev")
    if spec.family == "flux2":
        return random_architecture("random:FLUX.2-klein-9B" if "9b" in spec.variant else "random:FLUX.2-klein-4B")
    return random_architecture("random:FLUX.1-schnell" if spec.variant == "schnell" else "random:FLUX.1-dev")


def random_bytes(spec: ModelSpec, itemsize: int) -> int:
    """What the random weights of an architecture take; 0 for an unknown one."""
    try:
        return counts_of(architecture_of(spec)).total * itemsize
    except KeyError:
        return 0


def step_bytes(arch: AnyArchitecture, width: int, height: int, text_tokens: int) -> int:
    """Activations of one denoising step over one picture, in half precision."""
    if isinstance(arch, SdxlArchitecture):
        side = 2 ** (len(arch.vae["block_out_channels"]) - 1)
        cells = -(-height // side) * -(-width // side)
        return int(2 * _UNET_PLANES * arch.forwards * cells * counts_of(arch).width)
    cell = 2 ** len(arch.vae["block_out_channels"])
    tokens = -(-height // cell) * -(-width // cell) + text_tokens
    return _step_bytes(arch, tokens)


def recorded_bytes(arch: AnyArchitecture, preset: Preset) -> int:
    """What recorded steps (`pipelines.ops.replay`) hold: they run in memory of their own, all in the same."""
    if isinstance(arch, SdxlArchitecture | Flux3Architecture) or not preset.records:
        return 0
    return _step_bytes(arch, RECORDED_TOKENS) + _LAUNCHES


def _step_bytes(arch: AnyArchitecture, tokens: int) -> int:
    return int(2 * _STEP_VECTORS * tokens * counts_of(arch).width)


def decode_bytes(vae: Mapping[str, Any], width: int, height: int) -> int:
    """Activations of one decode in half precision: full-size planes as wide as the second-finest level."""
    channels = vae["block_out_channels"]
    return 2 * _DECODE_PLANES * width * height * int(channels[min(1, len(channels) - 1)])


def streamed_bytes(counts: Counts, itemsize: float) -> int:
    """What passes the bus in every step where blocks wait on the host. Args: itemsize: bytes a weight takes."""
    return int(sum(counts.blocks) * itemsize)


def buffer_bytes(counts: Counts, itemsize: float) -> int:
    """What `models.streaming` holds of the blocks on the device: the two largest neighbours."""
    return int((max(counts.blocks[0::2], default=0) + max(counts.blocks[1::2], default=0)) * itemsize)
