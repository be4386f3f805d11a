"""Pictures that steer a model (edges, depth, a picture with a hole), drawn from layouts, and their prescribed latents.

The encoder learns these too, so a model that takes such pictures trains on prescribed latents, without a codec.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.shapes.draw import LATENT_STEP, Drawing, Drawn, fields, prescribed
from models.shapes.layout import Layout

HOLE_COLOUR = 0.5  # FluxFillPipeline multiplies a picture in [-1, 1] by zero in the hole
LINE_WIDTHS = (1.0, 3.0)  # pixels: Canny draws one, enlarged pictures more
FAR = (0.0, 0.25)  # gray levels of the ground in a depth picture
NEAR = (0.5, 1.0)  # and of things


@dataclass(frozen=True, slots=True)
class Hole:
    """A rectangle, or the ellipse in it, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    is_round: bool = False


def depth_layout(layout: Layout, rng: random.Random) -> Layout:
    """The layout as a depth picture shows it: dark ground, every thing one lighter gray, near is bright."""
    far = rng.uniform(*FAR)
    poses = [replace(pose, colour=(rng.uniform(*NEAR),) * 3) for pose in layout.poses]
    return replace(layout, ground=(far, far, far), poses=tuple(poses))


def edge_fields(layouts: Drawn, width: float, step: float) -> tuple[Tensor, Tensor]:
    """`draw.fields` of white lines on black, `width` pixels wide, along the edges of all things."""
    _, distance = fields(layouts, step)
    away = distance.abs()
    reach = max(step, width) / 2  # a line thinner than a sample lights it in part
    cover = (0.5 + (reach - away) / min(step, width)).clamp(0, 1) * min(width / step, 1)
    return cover.expand(-1, 3, -1, -1), away - width / 2


def holed_fields(layouts: Drawn, holes: Sequence[Hole] | Tensor, step: float) -> tuple[Tensor, Tensor]:
    """`draw.fields` of pictures with one hole each: mid gray, its rim an edge like any other."""
    drawing = layouts if isinstance(layouts, Drawing) else Drawing.of(layouts)
    colour, distance = fields(drawing, step)
    hole = hole_distance(holes, drawing.width, drawing.height, step)
    cover = (0.5 - hole / step).clamp(0, 1)
    outside = distance.sign() * torch.minimum(distance.abs(), hole)
    return colour * (1 - cover) + HOLE_COLOUR * cover, torch.where(hole < 0, hole, outside)


def hole_numbers(holes: Sequence[Hole]) -> Tensor:
    """Left, top, right, bottom and roundness of every hole: (B, 5)."""
    return torch.tensor([(h.left, h.top, h.right, h.bottom, float(h.is_round)) for h in holes])


def hole_distance(holes: Sequence[Hole] | Tensor, width: int, height: int, step: float) -> Tensor:
    """Signed distance in pixels to each hole's rim, negative inside: (B, 1, rows, columns); roughly, for ellipses.

    Args: holes: or their numbers (B, 5), on any device.
    """
    table = holes if isinstance(holes, Tensor) else hole_numbers(holes)
    left, top, right, bottom, is_round = table.view(-1, 5, 1, 1).unbind(1)
    x = (torch.arange(int(width / step), device=table.device) + 0.5).mul(step).view(1, 1, -1)
    y = (torch.arange(int(height / step), device=table.device) + 0.5).mul(step).view(1, -1, 1)
    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    dx, dy = (x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs()
    out_x, out_y = dx - half_width, dy - half_height
    box = torch.hypot(out_x.clamp(min=0), out_y.clamp(min=0)) + torch.maximum(out_x, out_y).clamp(max=0)
    unit = torch.hypot(dx / half_width, dy / half_height)
    slope = torch.hypot(dx / half_width.square(), dy / half_height.square()).clamp(min=1e-6)
    ellipse = unit * (unit - 1) / slope
    return torch.where(is_round > 0, ellipse, box)[:, None]


def random_hole(width: int, height: int, rng: random.Random) -> Hole:
    """A hole of a fifth to three fifths of each side, anywhere."""
    w, h = rng.uniform(0.2, 0.6) * width, rng.uniform(0.2, 0.6) * height
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return Hole(left, top, left + w, top + h, rng.random() < 0.3)


def sights(layouts: Sequence[Layout], rng: random.Random, kind: str | None = None) -> tuple[Tensor, Tensor]:
    """What the encoder may meet, drawn from layouts: pictures (B, 3, H, W) in [-1, 1] and their latents.

    Of one kind ("scene", "edges", "depth", "hole"; random if None); some slightly noisy.
    """
    kind = kind or rng.choices(("scene", "edges", "depth", "hole"), (0.45, 0.2, 0.15, 0.2))[0]
    if kind == "edges":
        width = rng.uniform(*LINE_WIDTHS)
        (colour, _), coarse = (edge_fields(layouts, width, step) for step in (1, LATENT_STEP))
        colour = colour.round() if rng.random() < 0.5 else colour  # Canny's lines are not antialiased
    elif kind == "hole":
        holes = [random_hole(layouts[0].width, layouts[0].height, rng) for _ in layouts]
        (colour, _), coarse = (holed_fields(layouts, holes, step) for step in (1, LATENT_STEP))
    else:
        shown = [depth_layout(layout, rng) for layout in layouts] if kind == "depth" else layouts
        (colour, _), coarse = (fields(shown, step) for step in (1, LATENT_STEP))
    picture = colour * 2 - 1
    if rng.random() < 0.3:
        picture = picture + rng.uniform(0, 0.05) * torch.randn_like(picture)
    return picture, prescribed(*coarse)
