"""Layouts become tensors: antialiased pictures, and the prescribed latents that the transformer learns.

Both come from one signed distance per shape, tabulated once and sampled at any size and angle, so that a training
batch costs milliseconds and data never runs out.

The latent space is prescribed, not learned: a cell of 16 x 16 pixels is four numbers (mean red, green, blue, and a
softly clipped signed distance to the nearest edge), and 2 x 2 cells make the 16 channels of one latent pixel.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.shapes.layout import Layout, Pose
from models.shapes.scenes import SHAPES

CELL = 16  # pixels
LATENT_STEP = 8  # half a cell: samples whose edges are as wide average to the cell's coverage within 1 %
FACTOR = 32  # pixels per latent pixel, the VAE's scale factor
LATENT_CHANNELS = 16
DISTANCE_CLIP = 1.5  # cells: distances fade to +-1 beyond about this
PLANE_SHIFT = (0.55, 0.52, 0.5, -0.75)
PLANE_SCALE = (0.33, 0.31, 0.33, 0.5)

_EXTENT = 2.2  # the tables cover [-2.2, 2.2] radii
_TEXELS = 353


@dataclass(frozen=True)
class Drawing:
    """Layouts of one size as numbers, on any device: ground (B, 3) and things (B, K, 9), as `fields` reads them."""

    width: int
    height: int
    ground: Tensor
    poses: Tensor

    @staticmethod
    def of(layouts: Sequence[Layout]) -> "Drawing":
        """The numbers of layouts of one size."""
        count = max(1, *(len(layout.poses) for layout in layouts))
        poses = [
            [_numbers(pose) for pose in layout.poses] + [_ABSENT] * (count - len(layout.poses)) for layout in layouts
        ]
        ground = torch.tensor([layout.ground for layout in layouts])
        return Drawing(layouts[0].width, layouts[0].height, ground, torch.tensor(poses))

    def to(self, device: torch.device) -> "Drawing":
        """The same on another device: what is drawn from it is drawn there."""
        return replace(self, ground=self.ground.to(device), poses=self.poses.to(device))


Drawn = Sequence[Layout] | Drawing


def pictures(layouts: Drawn, *, oversample: int = 1) -> Tensor:
    """Antialiased pictures of layouts of one size: (B, 3, H, W) float32 in [-1, 1]."""
    colour, _ = fields(layouts, 1 / oversample)
    return colour * 2 - 1


def latents(layouts: Drawn) -> Tensor:
    """Prescribed latents of layouts of one size, sides multiples of 32: (B, 16, H/32, W/32) float32, about unit std."""
    return prescribed(*fields(layouts, LATENT_STEP))


def prescribed(colour: Tensor, distance: Tensor) -> Tensor:
    """The latents of colour (B, 3, rows, columns) in 0..1 and signed distance in pixels, sampled every LATENT_STEP."""
    soft = torch.tanh(-distance / (DISTANCE_CLIP * CELL))
    planes = torch.nn.functional.avg_pool2d(torch.cat([colour, soft], dim=1), 2)
    shift, scale = planes.new_tensor(PLANE_SHIFT).view(1, 4, 1, 1), planes.new_tensor(PLANE_SCALE).view(1, 4, 1, 1)
    return torch.nn.functional.pixel_unshuffle((planes - shift) / scale, 2)


def thumbnails(latent: Tensor) -> Tensor:
    """The four planes of latents: (B, 16, h, w) -> (B, 4, 2h, 2w); colours in 0..1, soft distance in -1..1."""
    shift, scale = latent.new_tensor(PLANE_SHIFT).view(1, 4, 1, 1), latent.new_tensor(PLANE_SCALE).view(1, 4, 1, 1)
    return torch.nn.functional.pixel_shuffle(latent, 2) * scale + shift


def fields(layouts: Drawn, step: float, *, line: float | None = None) -> tuple[Tensor, Tensor]:
    """Colour in 0..1 (B, 3, rows, columns) and signed distance in pixels (B, 1, rows, columns), negative inside.

    Sampled every `step` pixels, edges one step wide; steps of less than LATENT_STEP are interpolated.
    Args: line: draw every thing as an outline of so many pixels, half of it inside.
    """
    drawing = layouts if isinstance(layouts, Drawing) else Drawing.of(layouts)
    columns, rows, pose = int(drawing.width / step), int(drawing.height / step), drawing.poses
    distance = _distances(pose, columns, rows, step, fine=step < LATENT_STEP)
    if line is not None:
        distance = distance.abs() - line / 2
    cover = (0.5 - distance / step).clamp(0, 1)
    colour = drawing.ground[..., None, None] * (1 - cover.sum(1, keepdim=True).clamp(max=1))
    colour = colour + torch.einsum("bkhw,bkc->bchw", cover, pose[..., 5:8])
    return colour, distance.amin(1, keepdim=True)


# x, y, radius, cosine, sine, red, green, blue, shape: of a thing far outside every picture
_ABSENT = (-1e4, -1e4, 1e3, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _numbers(pose: Pose) -> tuple[float, ...]:
    turn = math.radians(pose.angle)
    return (pose.x, pose.y, pose.radius, math.cos(turn), math.sin(turn), *pose.colour, float(SHAPES.index(pose.shape)))


def _distances(pose: Tensor, columns: int, rows: int, step: float, *, fine: bool) -> Tensor:
    """Signed distance in pixels of every sample point to every thing, interpolated if `fine`: (B, K, rows, columns)."""
    x = (torch.arange(columns, device=pose.device) + 0.5).mul(step).view(1, 1, 1, -1) - pose[..., 0, None, None]
    y = (torch.arange(rows, device=pose.device) + 0.5).mul(step).view(1, 1, -1, 1) - pose[..., 1, None, None]
    radius, cos, sin = (pose[..., i, None, None] for i in (2, 3, 4))
    u = (x * cos + y * sin) / radius
    v = (y * cos - x * sin) / radius
    scale = (_TEXELS - 1) / (2 * _EXTENT)
    u = ((u + _EXTENT) * scale).clamp(0, _TEXELS - 1.001)
    v = ((v + _EXTENT) * scale).clamp(0, _TEXELS - 1.001)
    first = pose[..., 8, None, None].int() * _TEXELS**2
    table = _tables(pose.device).view(-1)
    if not fine:
        return table[first + (v + 0.5).int() * _TEXELS + (u + 0.5).int()] * radius
    left, top = u.floor(), v.floor()
    u, v = u - left, v - top
    index = first + top.int() * _TEXELS + left.int()
    upper = table[index] * (1 - u) + table[index + 1] * u
    lower = table[index + _TEXELS] * (1 - u) + table[index + _TEXELS + 1] * u
    return (upper * (1 - v) + lower * v) * radius


def signed_distance(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the edge of a shape of radius 1 at the origin, negative inside, y down; any array shape."""
    distance: NDArray[np.float64] = _SIGNED[shape](torch.from_numpy(x), torch.from_numpy(y)).numpy()
    return distance


@functools.cache
def _tables(device: torch.device) -> Tensor:
    """Signed distance of every shape in units of its radius: (shapes, texels, texels), y down."""
    axis = torch.linspace(-_EXTENT, _EXTENT, _TEXELS, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([_SIGNED[name](x, y) for name in SHAPES]).float().contiguous().to(device)


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Exact signed distance to a closed polygon. Source: Inigo Quilez, 2D distance functions, sdPolygon."""
    nearest = torch.full_like(x, math.inf)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        t = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(x - ax - t * ex, y - ay - t * ey))
        crosses = ((y >= ay) != (y >= by)) & ((x - ax) < (y - ay) * ex / (ey if ey else 1e-12))
        sign = torch.where(crosses, -sign, sign)
    return sign * nearest


def _star(x: Tensor, y: Tensor) -> Tensor:
    turns = [(math.pi * i / 5, 1.1 if i % 2 == 0 else 0.46) for i in range(10)]
    return _polygon(x, y - 0.06, [(r * math.sin(a), -r * math.cos(a)) for a, r in turns])


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Source: the usual parametric heart, 16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    corners = []
    for i in range(96):
        t = 2 * math.pi * i / 96
        rise = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((16 * math.sin(t) ** 3 / 16.2, -(rise + 2.5) / 15.5))
    return _polygon(x, y, corners)


def _skull(x: Tensor, y: Tensor) -> Tensor:
    head = _disc(x, y + 0.22, 0.8)
    jaw = _polygon(x, y, [(-0.44, 0.2), (0.44, 0.2), (0.44, 0.98), (-0.44, 0.98)])
    eyes = torch.minimum(_disc(x - 0.34, y + 0.14, 0.24), _disc(x + 0.34, y + 0.14, 0.24))
    nose = _polygon(x, y, [(0.0, 0.12), (0.15, 0.42), (-0.15, 0.42)])
    return torch.maximum(torch.minimum(head, jaw), -torch.minimum(eyes, nose))


_SIGNED = {
    "circle": lambda x, y: _disc(x, y, 0.93),
    "square": lambda x, y: _polygon(x, y, [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": lambda x, y: _polygon(x, y, [(0.0, -1.02), (1.02, 0.74), (-1.02, 0.74)]),
    "star": _star,
    "heart": _heart,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.7).abs() - 0.25,
    "diamond": lambda x, y: _polygon(x, y, [(0.0, -1.08), (0.7, 0.0), (0.0, 1.08), (-0.7, 0.0)]),
    "cross": lambda x, y: torch.minimum(
        _polygon(x, y, [(-0.98, -0.31), (0.98, -0.31), (0.98, 0.31), (-0.98, 0.31)]),
        _polygon(x, y, [(-0.31, -0.98), (0.31, -0.98), (0.31, 0.98), (-0.31, 0.98)]),
    ),
    "skull": _skull,
}
