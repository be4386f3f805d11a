"""What is in a picture, judged from its pixels alone by classical image analysis, and how well that fits a scene.

Ground: the commonest named colour along the border. Things: connected regions that differ from the ground. Shape:
the template with the best overlap after moving, scaling and a small turn, or none if no template fits. It knows
nothing of any model; its accuracy on drawn truth is tested.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.shapes.draw import signed_distance
from models.shapes.layout import centres
from models.shapes.scenes import COLOURS, SHAPES, Scene

LONG_SIDE = 640  # larger pictures are reduced first
MIN_AREA = 0.002  # of the picture: smaller regions are specks
MIN_CONTRAST = 36.0  # RGB distance from the ground
MIN_OVERLAP = 0.8  # intersection over union below which a region has no shape
_GRID = 40
_REACH = 1.25  # the comparison window, in units of the square root of the region's area
_ANGLES = tuple(range(-20, 21, 5))
ATTRIBUTES = ("ground", "colour", "shape", "count", "place")

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Seen:
    """One region: its named colour, its shape (None if nothing fits), its centre in fractions of the picture."""

    shape: str | None
    colour: str
    x: float
    y: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Reading:
    """All that the scorer sees in a picture."""

    ground: str
    things: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Per attribute, how many were asked and how many are right; colour, shape and place count once per thing."""

    right: dict[str, int]
    asked: dict[str, int]

    @property
    def is_perfect(self) -> bool:
        """True if every attribute of the scene is right."""
        return self.right == self.asked


def read(picture: Pixels) -> Reading:
    """The ground and the things of a picture (H, W, 3) uint8."""
    pixels = _reduced(picture).astype(np.float32)
    height, width = pixels.shape[:2]
    ground, level = _ground(pixels)
    things = []
    for mask in _regions(np.linalg.norm(pixels - level, axis=2) > MIN_CONTRAST, int(MIN_AREA * height * width)):
        colour, exact = _refined(pixels, mask, level)
        if exact.sum() < MIN_AREA * height * width:
            continue
        rows, columns = np.nonzero(exact)
        shape, overlap = _shape(exact)
        x, y = (columns.min() + columns.max() + 1) / 2 / width, (rows.min() + rows.max() + 1) / 2 / height
        things.append(Seen(shape, colour, float(x), float(y), overlap))
    return Reading(ground, tuple(things))


def score(scene: Scene, reading: Reading) -> Score:
    """How a reading fits a scene, under the pairing of asked and seen things that fits best."""
    wanted = len(scene.things)
    right = dict.fromkeys(ATTRIBUTES, 0)
    right["ground"] = int(reading.ground == scene.ground)
    right["count"] = int(len(reading.things) == wanted)
    seen: list[Seen | None] = [*reading.things[:6], *[None] * wanted]
    best = max((_matches(scene, pairing) for pairing in itertools.permutations(seen, wanted)), key=sum)
    right["colour"], right["shape"], right["place"] = best
    asked = {"ground": 1, "count": 1, "colour": wanted, "shape": wanted, "place": wanted}
    return Score(right, {name: asked[name] for name in ATTRIBUTES})


def zone(x: float, y: float) -> tuple[int, int]:
    """The column and row (0, 1, 2) of the three by three zones that a point in fractions of the picture lies in."""
    column, row = (0 if value < 0.365 else 1 if value <= 0.635 else 2 for value in (x, y))
    return column, row


def named_colour(rgb: NDArray[np.float32]) -> str:
    """The vocabulary colour nearest to an RGB value in 0..255."""
    names, table = _palette()
    return names[int(np.argmin(((table - rgb) ** 2).sum(1)))]


def _matches(scene: Scene, pairing: Sequence[Seen | None]) -> tuple[int, int, int]:
    colour = shape = place = 0
    for thing, centre, seen in zip(scene.things, centres(scene), pairing, strict=True):
        if seen is not None:
            colour += seen.colour == thing.colour
            shape += seen.shape == thing.shape
            place += zone(seen.x, seen.y) == zone(*centre)
    return colour, shape, place


def _reduced(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = LONG_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


@functools.cache
def _palette() -> tuple[list[str], NDArray[np.float32]]:
    return list(COLOURS), np.array(list(COLOURS.values()), dtype=np.float32)


def _ground(pixels: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
    """The commonest named colour of the outermost pixels, and its median RGB."""
    edge = max(2, min(pixels.shape[:2]) // 64)
    border = np.concatenate(
        [part.reshape(-1, 3) for part in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:])]
    )
    names, table = _palette()
    nearest = ((border[:, None] - table[None]) ** 2).sum(2).argmin(1)
    commonest = int(np.bincount(nearest, minlength=len(names)).argmax())
    return names[commonest], np.median(border[nearest == commonest], axis=0)


def _refined(pixels: NDArray[np.float32], mask: Mask, level: NDArray[np.float32]) -> tuple[str, Mask]:
    """The colour of a region and its exact extent: the pixels more than half way from the ground to that colour."""
    inside = pixels[mask] - level
    strength = np.linalg.norm(inside, axis=1)
    colour = np.median(pixels[mask][strength >= np.median(strength)], axis=0)
    direction = (colour - level) / max(float(np.square(colour - level).sum()), 1.0)
    exact = mask.copy()
    exact[mask] = inside @ direction > 0.5
    return named_colour(colour), exact


def _regions(mask: Mask, smallest: int) -> list[Mask]:
    """Connected regions (eight neighbours) of at least `smallest` pixels, from the top down."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return [labels == label for label in range(1, count) if stats[label, cv2.CC_STAT_AREA] >= smallest]


def _shape(mask: Mask) -> tuple[str | None, float]:
    """The best-fitting shape of a region and its overlap; None if the overlap is below MIN_OVERLAP."""
    window = _window(mask)
    templates = _templates()
    both = (templates & window).sum((2, 3))
    either = (templates | window).sum((2, 3))
    overlap = (both / np.maximum(either, 1)).max(1)
    best = int(overlap.argmax())
    return (SHAPES[best] if overlap[best] >= MIN_OVERLAP else None), float(overlap[best])


def _window(mask: Mask) -> Mask:
    """The region sampled on a fixed grid around its centroid, scaled by the root of its area: (_GRID, _GRID)."""
    rows, columns = np.nonzero(mask)
    span = np.linspace(-_REACH, _REACH, _GRID) * len(rows) ** 0.5
    y = np.rint(rows.mean() + span).astype(int)
    x = np.rint(columns.mean() + span).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None, :]
    sampled = mask[y.clip(0, mask.shape[0] - 1)][:, x.clip(0, mask.shape[1] - 1)]
    return np.asarray(sampled & inside, dtype=np.bool_)


@functools.cache
def _templates() -> NDArray[np.bool_]:
    """Every shape at every small angle, seen through the same window: (shapes, angles, _GRID, _GRID)."""
    axis = np.linspace(-1.6, 1.6, 321)
    x, y = np.meshgrid(axis, axis)
    rows = []
    for shape in SHAPES:
        turned = []
        for angle in np.deg2rad(_ANGLES):
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            turned.append(_window(signed_distance(shape, u, v) < 0))
        rows.append(np.stack(turned))
    return np.stack(rows)
