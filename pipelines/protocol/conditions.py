"""What a request brings to its steps besides a prompt: pictures, masks, adapters. Plain, validated values; no torch.

A condition names a picture of its request by index; the pixels travel beside the parameters (`InputPicture`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

MAX_PICTURES = 16
"""Pictures one request may bring."""

SEEN_AREA = 1024 * 1024
"""Pixels that FLUX.2 sees of a reference, and FLUX.3 of each of several; a larger picture is made smaller first."""

CONTROLS = ("canny", "depth")

_ADAPTER_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class InputPicture:
    """One picture of a request as raw pixels: `pixels` is height x width x channels bytes, row major, RGB or grey.

    Raises: ValueError if the sizes disagree.
    """

    width: int
    height: int
    channels: int
    pixels: bytes

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.width < 1 or self.height < 1:
            raise ValueError(f"a picture of {self.width} x {self.height} pixels and {self.channels} channels")
        if len(self.pixels) != self.width * self.height * self.channels:
            raise ValueError(f"{self.width} x {self.height} x {self.channels} pixels, but {len(self.pixels)} bytes")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    def to_dict(self) -> dict[str, Any]:
        """As `Submit.pictures` carries it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ImageToImage:
    """Start from an encoded picture.

    Args: strength: share of the steps that are drawn, in (0, 1]; 1 ignores it. rounds_down: see `kept_steps`.
    """

    kind: ClassVar[str] = "image_to_image"
    picture: int
    strength: float
    rounds_down: bool = False

    def __post_init__(self) -> None:
        _check_pictures(self.picture)
        _check_strength(self.strength)

    @property
    def pictures(self) -> tuple[int, ...]:
        return (self.picture,)


@dataclass(frozen=True, slots=True)
class Inpaint:
    """Draw anew where the mask is white; where it is black the picture comes back untouched, grey edges are blended.

    Args: is_differential: grey says how much may change, from nothing (black) to all (white): such a place is held
        to the picture for the first part of the steps.
        rounds_down: see `kept_steps`.
    """

    kind: ClassVar[str] = "inpaint"
    picture: int
    mask: int
    strength: float
    is_differential: bool = False
    rounds_down: bool = False

    def __post_init__(self) -> None:
        _check_pictures(self.picture, self.mask)
        _check_strength(self.strength)

    @property
    def pictures(self) -> tuple[int, ...]:
        return (self.picture, self.mask)


@dataclass(frozen=True, slots=True)
class Fill:
    """Draw what is missing where the mask is white, by a checkpoint trained for it; the rest comes back untouched."""

    kind: ClassVar[str] = "fill"
    picture: int
    mask: int

    def __post_init__(self) -> None:
        _check_pictures(self.picture, self.mask)

    @property
    def pictures(self) -> tuple[int, ...]:
        return (self.picture, self.mask)


@dataclass(frozen=True, slots=True)
class Control:
    """Follow edges or depth, by a checkpoint trained for it. Args: is_prepared: the picture already shows them."""

    kind: ClassVar[str] = "control"
    control: Literal["canny", "depth"]
    picture: int
    is_prepared: bool = False

    def __post_init__(self) -> None:
        _check_pictures(self.picture)
        _check_control(self.control)

    @property
    def pictures(self) -> tuple[int, ...]:
        return (self.picture,)


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures to edit or to draw from, seen as tokens behind the drawn ones (Kontext)."""

    kind: ClassVar[str] = "reference"
    pictures: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))
        _check_some(self.pictures)


@dataclass(frozen=True, slots=True)
class Redux:
    """Pictures as tokens behind the prompt's.

    Args:
        encoder: name of the checkpoint whose image encoder and embedder turn them into tokens.
        strength: factor of the pictures' tokens; several pictures are averaged. 0 leaves the prompt alone.
        prompt_strength: factor of the prompt's tokens and of its pooled vector.
    """

    kind: ClassVar[str] = "redux"
    pictures: tuple[int, ...]
    encoder: str
    strength: float = 1.0
    prompt_strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))
        _check_some(self.pictures)
        for name, value in (("strength", self.strength), ("prompt_strength", self.prompt_strength)):
            if not 0 <= value <= 10:
                raise ValueError(f"{name} must lie in [0, 10], not {value}")


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A second network's say in every step.

    Args:
        name: of its checkpoint.
        scale: factor of what it adds.
        start, end: the part of the steps in which it does, in [0, 1].
        control: what to make of the picture first; None takes it as it is.
    """

    kind: ClassVar[str] = "controlnet"
    name: str
    picture: int
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    control: Literal["canny", "depth"] | None = None

    def __post_init__(self) -> None:
        _check_pictures(self.picture)
        if self.control is not None:
            _check_control(self.control)
        if not 0 <= self.scale <= 10:
            raise ValueError(f"scale must lie in [0, 10], not {self.scale}")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start and end must be in order within [0, 1], not {self.start} and {self.end}")

    @property
    def pictures(self) -> tuple[int, ...]:
        return (self.picture,)


@dataclass(frozen=True, slots=True)
class Refine:
    """Draw at the size the model was trained for, enlarge, and draw the last steps again at the full size.

    Args: strength: share of the steps drawn again, in (0, 1).
    """

    kind: ClassVar[str] = "refine"
    strength: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.strength < 1:
            raise ValueError(f"strength must lie in (0, 1), not {self.strength}")

    @property
    def pictures(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Coarse:
    """Draw the first steps on half the sides, with a quarter of the tokens.

    Args: share: of the steps, in (0, 1).
    """

    kind: ClassVar[str] = "coarse"
    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), not {self.share}")

    @property
    def pictures(self) -> tuple[int, ...]:
        return ()


Condition = ImageToImage | Inpaint | Fill | Control | Reference | Redux | ControlNet | Refine | Coarse

_KINDS: dict[str, type[Condition]] = {condition.kind: condition for condition in get_args(Condition)}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA of the node's adapter folder. Args: file: its name there, never a path. scale: factor of what it adds."""

    file: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not _ADAPTER_FILE.fullmatch(self.file):
            raise ValueError("an adapter is the name of a .safetensors file")
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale of an adapter must be a number, not {self.scale}")


def condition_to_dict(condition: Condition) -> dict[str, Any]:
    """As plain values for JSON or msgpack, with its `kind`."""
    values = asdict(condition)
    return {"kind": condition.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def condition_from_dict(values: Mapping[str, Any]) -> Condition:
    """The inverse of `condition_to_dict`. Raises: ValueError for an unknown kind; what the condition itself raises."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"no condition of kind {kind!r}")
    return _KINDS[kind](**rest)


def check_conditions(conditions: tuple[Condition, ...]) -> None:
    """Raises: ValueError if one kind comes twice (ControlNets may), or if two contradict each other."""
    kinds = [condition.kind for condition in conditions if not isinstance(condition, ControlNet)]
    twice = {kind for kind in kinds if kinds.count(kind) > 1}
    if twice:
        raise ValueError(f"more than one condition of kind {', '.join(sorted(twice))}")
    starts = [kind for kind in kinds if kind in (ImageToImage.kind, Inpaint.kind, Fill.kind)]
    if len(starts) > 1:
        raise ValueError(f"{' and '.join(starts)} exclude each other: both say where the picture starts")


def kept_steps(num_steps: int, strength: float, rounds_down: bool = False) -> int:
    """Of `num_steps`, how many a request of this strength draws: diffusers' `get_timesteps`, and at least one.

    Args: rounds_down: a step that is drawn in part is left out, as by SDXL's pipelines; FLUX's draw it.
    """
    if rounds_down:
        return max(1, int(num_steps * strength))
    return num_steps - int(max(num_steps - min(num_steps * strength, num_steps), 0))


def _check_pictures(*indices: int) -> None:
    for index in indices:
        if not 0 <= index < MAX_PICTURES:
            raise ValueError(f"a request has pictures 0 to {MAX_PICTURES - 1}, not {index}")


def _check_some(indices: tuple[int, ...]) -> None:
    if not indices:
        raise ValueError("at least one picture is needed")
    _check_pictures(*indices)


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], not {strength}")


def _check_control(control: str) -> None:
    if control not in CONTROLS:
        raise ValueError(f"control must be one of {', '.join(CONTROLS)}, not {control}")
