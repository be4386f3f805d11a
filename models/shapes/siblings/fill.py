"""Fill: a picture with a hole, and what the prompt puts into it.

The prompt is the thing alone ("a red star") or a caption of the whole picture. The mask enters as FluxFillPipeline
packs it, one channel for every pixel of a token; training sees means over blocks of 8 x 8 pixels, and `spread_mask`
gives every pixel its share of the block's weight, which is the same function of any mask.
"""

import random
from dataclasses import dataclass, replace

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from models.shapes.captions import COLOUR_WORDS, SHAPE_WORDS
from models.shapes.conditions import Hole, hole_distance, hole_numbers, holed_fields
from models.shapes.draw import FACTOR, LATENT_STEP, Drawing, latents, prescribed
from models.shapes.fast import Size
from models.shapes.flow import TOKEN, Batch, pack
from models.shapes.layout import Layout, lay_out
from models.shapes.scenes import Scene, is_held_out, random_scene
from models.shapes.scorer import Reading
from models.shapes.siblings.judge import all_there, wanted
from models.shapes.siblings.questions import AskedBatch, shapes_at
from models.shapes.siblings.sizes import random_size
from models.shapes.siblings.widen import plain_config
from models.shapes.text import Encoders, Words, random_length
from models.shapes.train_flow import rows_of

BLOCK = 8  # pixels a side of the mask's blocks in training
BLOCKS = (TOKEN // BLOCK) ** 2  # a token
PIXELS = 4 * FACTOR**2  # mask channels that the pipeline sends
CHANNELS = 64 + BLOCKS
OUTSIDE_WEIGHT = 0.15  # what is outside the hole is composited back, and easy
NOISE = 0.12  # the encoder is that far from the prescribed latents, and a little less


@dataclass(frozen=True)
class Filling:
    """A picture, a hole in it around one of its things, and the prompt that asks for that thing."""

    prompt: str
    scene: Scene
    layout: Layout
    hole: Hole
    index: int  # of the thing in the hole


def random_filling(width: int, height: int, rng: random.Random, *, held_out: bool = False) -> Filling:
    """A random case in a `width` x `height` picture, of the training or the held-out side."""
    scene = random_scene(rng, held_out=held_out)
    layout = lay_out(scene, width, height, rng)
    indices = [i for i, t in enumerate(scene.things) if not held_out or is_held_out(replace(scene, things=(t,)))]
    index = rng.choice(indices)
    return Filling(_prompt(scene, index, rng, plain=held_out), scene, layout, _around(layout, index, rng), index)


def _around(layout: Layout, index: int, rng: random.Random) -> Hole:
    """A hole that holds a thing and, as far as there is room, nothing of the others."""
    pose = layout.poses[index]
    room = [
        max(abs(pose.x - other.x), abs(pose.y - other.y)) - 1.1 * other.radius
        for other in layout.poses
        if other is not pose
    ]
    most = min([2.2 * pose.radius, *room])
    sides = [max(1.15 * pose.radius, rng.uniform(1.15 * pose.radius, max(most, 1.15 * pose.radius))) for _ in range(4)]
    is_round = rng.random() < 0.25
    if is_round:
        sides = [max(sides)] * 4
    left, top = max(pose.x - sides[0], 0.0), max(pose.y - sides[1], 0.0)
    right, bottom = min(pose.x + sides[2], layout.width), min(pose.y + sides[3], layout.height)
    return Hole(left, top, right, bottom, is_round)


def _prompt(scene: Scene, index: int, rng: random.Random, *, plain: bool) -> str:
    thing = scene.things[index]
    if plain:
        return _a(f"{thing.colour} {thing.shape}")
    colour = rng.choice(COLOUR_WORDS[thing.colour]) if rng.random() < 0.1 else thing.colour
    text = f"{colour} {rng.choice(SHAPE_WORDS[thing.shape])}"
    text = _a(text) if rng.random() < 0.85 else text
    if rng.random() < 0.35:
        text += rng.choice((f" on a {scene.ground} background", f" on {scene.ground}"))
    return text.capitalize() if rng.random() < 0.1 else text


def _a(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"


def hole_mask(hole: Hole, width: int, height: int) -> Tensor:
    """The mask as a client would send it: (height, width) bool, true in the hole."""
    return hole_distance([hole], width, height, 1)[0, 0] < 0


@dataclass(frozen=True)
class Fillings:
    """Pictures with holes as numbers, before they are drawn."""

    whole: Drawing
    holes: Tensor
    words: Words

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Batch:
        """The batch, drawn on the encoders' device."""
        pooled, sequence = encoders.read(self.words)
        whole, holes = self.whole.to(pooled.device), self.holes.to(pooled.device)
        masked = pack(prescribed(*holed_fields(whole, holes, LATENT_STEP)))
        masked = masked + torch.rand_like(masked[:, :1, :1]) * NOISE * torch.randn_like(masked)
        distance = hole_distance(holes, whole.width, whole.height, LATENT_STEP)
        blocks = mask_blocks((0.5 - distance / LATENT_STEP).clamp(0, 1))
        inside = blocks.amax(2, keepdim=True)
        return AskedBatch(
            pack(latents(whole)),
            pooled,
            sequence,
            whole.height,
            whole.width,
            channels=torch.cat([masked, blocks], dim=2),
            weight=OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * inside,
            shapes=shapes_at(whole),
        )


def plan_fillings(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Fillings:
    """Fresh holes of one size; one in eight is a hole where nothing was, to be closed when the prompt is empty."""
    cases = [random_filling(*size, rng) for _ in range(count)]
    silent = [rng.random() < 0.12 for _ in cases]
    whole = [_erased(case) if quiet else case.layout for case, quiet in zip(cases, silent, strict=True)]
    words = ["" if quiet else case.prompt for case, quiet in zip(cases, silent, strict=True)]
    return Fillings(Drawing.of(whole), hole_numbers([case.hole for case in cases]), encoders.words(words, length))


def draw_fillings(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch of holes."""
    size = random_size(rng, done)
    return plan_fillings(encoders, rng, size, random_length(rng), rows_of(size, tokens, most=96)).shown(encoders)


def _erased(case: Filling) -> Layout:
    poses = tuple(pose for i, pose in enumerate(case.layout.poses) if i != case.index)
    return replace(case.layout, poses=poses)


def mask_blocks(mask: Tensor) -> Tensor:
    """Means over blocks of a mask (B, 1, H / 8, W / 8) by token: (B, L, 64), row by row within a token."""
    side = TOKEN // BLOCK
    return torch.nn.functional.pixel_unshuffle(mask, side).flatten(2).mT


@torch.no_grad()
def spread_mask(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The same function with one mask channel a pixel, in the order of FluxFillPipeline.prepare_mask_latents."""
    config = plain_config(transformer) | {"in_channels": 128 + PIXELS}
    spread = FluxTransformer2DModel.from_config(config).eval()
    state = transformer.state_dict()
    weight = state["x_embedder.weight"]
    mask = weight[:, 128:][:, _block_of_pixel()] / BLOCK**2
    state["x_embedder.weight"] = torch.cat([weight[:, :128], mask], dim=1)
    spread.load_state_dict(state)
    return spread


@torch.no_grad()
def gathered_mask(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The inverse of `spread_mask`: what a written transformer is trained on as."""
    config = plain_config(transformer) | {"in_channels": 64 + CHANNELS}
    gathered = FluxTransformer2DModel.from_config(config)
    state = transformer.state_dict()
    weight = state["x_embedder.weight"]
    summed = torch.zeros(len(weight), BLOCKS).index_add_(1, _block_of_pixel(), weight[:, 128:].cpu())
    state["x_embedder.weight"] = torch.cat([weight[:, :128].cpu(), summed], dim=1)
    gathered.load_state_dict(state)
    return gathered


def _block_of_pixel() -> Tensor:
    """(PIXELS,): channel (y * 32 + x) * 4 + 2 * row + column is pixel (y, x) of latent pixel (row, column)."""
    grid = torch.arange(TOKEN) // BLOCK
    block = (grid[:, None] * (TOKEN // BLOCK) + grid[None]).view(2, FACTOR, 2, FACTOR)
    return block.permute(1, 3, 0, 2).reshape(-1)


def judge_filling(case: Filling, reading: Reading) -> tuple[bool, bool]:
    """Whether the thing that was asked for is read in the hole, and all else as it was around it."""
    things, hole, layout = wanted(case.scene, case.layout), case.hole, case.layout
    asked = things.pop(case.index)
    inside = [
        thing
        for thing in reading.things
        if hole.left < thing.x * layout.width < hole.right and hole.top < thing.y * layout.height < hole.bottom
    ]
    filled = any((thing.shape, thing.colour) == (asked.shape, asked.colour) for thing in inside)
    as_was = reading.ground == case.scene.ground and len(reading.things) == len(things) + 1
    return filled, as_was and all_there(reading, things)
