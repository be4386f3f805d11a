"""Whether a picture holds what it should: things at their spots, read from pixels by the scorer."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.shapes.layout import Layout
from models.shapes.scenes import Scene
from models.shapes.scorer import Reading, Seen

REACH = 0.1  # of the picture's sides: how far a thing may be read from its spot


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that a picture should hold: its centre in fractions of the sides."""

    shape: str
    colour: str
    x: float
    y: float


def wanted(scene: Scene, layout: Layout) -> list[Wanted]:
    """The things of a scene where a layout has them."""
    return [
        Wanted(thing.shape, thing.colour, pose.x / layout.width, pose.y / layout.height)
        for thing, pose in zip(scene.things, layout.poses, strict=True)
    ]


def seen_at(reading: Reading, x: float, y: float) -> Seen | None:
    """The thing read nearest to a spot, if one is within reach."""
    near = [thing for thing in reading.things if max(abs(thing.x - x), abs(thing.y - y)) <= REACH]
    return min(near, key=lambda thing: (thing.x - x) ** 2 + (thing.y - y) ** 2, default=None)


def is_there(reading: Reading, thing: Wanted) -> bool:
    """Whether a thing of that shape and colour is read at its spot."""
    seen = seen_at(reading, thing.x, thing.y)
    return seen is not None and (seen.shape, seen.colour) == (thing.shape, thing.colour)


def all_there(reading: Reading, things: Sequence[Wanted]) -> bool:
    """Whether every one of the things is."""
    return all(is_there(reading, thing) for thing in things)
