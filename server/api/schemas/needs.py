"""What a request needs before it can run: pictures, adapters, checkpoints beside the one that draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from models.registry import Variant
from server.api.schemas.pictures import Loc
from server.files.decoding import Reading


@dataclass(frozen=True, slots=True)
class PictureNeed:
    """One picture.

    Args: reading: how it is understood. grow: pixels by which the white of a mask is widened. seen_area: pixels of it
        that are looked at; a larger one is made smaller before it travels.
    """

    url: str
    loc: Loc
    reading: Reading = "colours"
    grow: int = 0
    seen_area: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterNeed:
    """One LoRA: `path` is an address or a name, as the caller wrote it."""

    path: str
    scale: float
    loc: Loc


@dataclass
class Needs:
    """Collects what the conditions of one input need.

    Args: checkpoint: name of the served checkpoint of a kind, beside the one that draws; it raises if there is none.
        named: the same for one that the input names at `loc`.
    """

    checkpoint: Callable[[Variant], str]
    named: Callable[[str, Loc], str]
    pictures: list[PictureNeed] = field(default_factory=list)

    def picture(self, url: str, *loc: str | int, seen_area: int | None = None) -> int:
        """Ask for a picture; returns its index in the request."""
        return self._add(PictureNeed(url, loc, seen_area=seen_area))

    def mask(self, url: str, *loc: str | int, grow: int = 0) -> int:
        """Ask for a mask; returns its index in the request."""
        return self._add(PictureNeed(url, loc, "mask", grow))

    def _add(self, need: PictureNeed) -> int:
        self.pictures.append(need)
        return len(self.pictures) - 1
