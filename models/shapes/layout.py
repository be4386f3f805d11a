"""Where things stand: a scene becomes poses in pixels of a picture of any size; the only part a seed decides."""

import random
from dataclasses import dataclass

from models.shapes.scenes import COLOURS, PLACES, Scene

DIAMETERS = {"small": 0.28, "normal": 0.45, "large": 0.62}  # of the short side, one centred thing
PLACED_DIAMETERS = {"small": 0.25, "normal": 0.35, "large": 0.4}
COLUMN_OF_PLACE = (0.23, 0.5, 0.77)
ROW = ((0.28, 0.5), (0.72, 0.5))
COLUMN = ((0.5, 0.28), (0.5, 0.72))
GROUP = ((0.5, 0.27), (0.27, 0.72), (0.73, 0.72))
Point = tuple[float, float]
RGB = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pose:
    """One thing in a picture: centre, radius and angle (degrees, clockwise) in pixels, colour in 0..1."""

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    colour: RGB


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture's geometry: its size in pixels, the ground's colour in 0..1, and the things' poses."""

    width: int
    height: int
    ground: RGB
    poses: tuple[Pose, ...]


def centres(scene: Scene) -> tuple[Point, ...]:
    """The nominal centre of every thing, as fractions of width and height."""
    if scene.arrangement == "row":
        return ROW
    if scene.arrangement == "column":
        return COLUMN
    if scene.arrangement == "group":
        return GROUP
    cells = [PLACES[thing.place or "centre"] for thing in scene.things]
    return tuple((COLUMN_OF_PLACE[column], COLUMN_OF_PLACE[row]) for column, row in cells)


def diameters(scene: Scene) -> tuple[float, ...]:
    """The nominal diameter of every thing, as a fraction of the picture's short side."""
    if scene.arrangement in ("row", "column"):
        return (0.36,) * len(scene.things)
    if scene.arrangement == "group":
        return (0.33,) * len(scene.things)
    if len(scene.things) > 1:
        return (0.31,) * len(scene.things)
    thing = scene.things[0]
    table = DIAMETERS if thing.place == "centre" else PLACED_DIAMETERS
    return (table[thing.size],)


def lay_out(scene: Scene, width: int, height: int, rng: random.Random) -> Layout:
    """Poses of a scene in a `width` x `height` picture, with small jitter of place, size, angle and colour."""
    short = min(width, height)
    poses = []
    for thing, (x, y), diameter in zip(scene.things, centres(scene), diameters(scene), strict=True):
        radius = diameter * short / 2 * rng.uniform(0.93, 1.07)
        poses.append(
            Pose(
                thing.shape,
                x * width + rng.uniform(-0.025, 0.025) * short,
                y * height + rng.uniform(-0.025, 0.025) * short,
                radius,
                rng.uniform(-9, 9),
                shade(thing.colour, rng),
            )
        )
    return Layout(width, height, shade(scene.ground, rng), tuple(poses))


def shade(colour: str, rng: random.Random) -> RGB:
    """The named colour, a touch lighter or darker, in 0..1."""
    shift = rng.uniform(-8, 8)
    red, green, blue = (min(max(value + shift, 0.0), 255.0) / 255 for value in COLOURS[colour])
    return red, green, blue
