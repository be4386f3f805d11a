"""Canny and depth: a picture that gives the geometry, and a prompt that gives the colours.

One transformer learns both kinds: white edges on black, and bright things on a dark ground.
"""

import random
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn

from models.shapes.captions import COLOUR_WORDS, SHAPE_WORDS, caption
from models.shapes.conditions import LINE_WIDTHS, depth_layout, edge_fields
from models.shapes.draw import LATENT_STEP, Drawing, fields, latents, prescribed
from models.shapes.fast import Size
from models.shapes.flow import Batch, pack
from models.shapes.layout import Layout, lay_out
from models.shapes.scenes import Scene, random_scene
from models.shapes.scorer import Reading
from models.shapes.siblings.judge import seen_at, wanted
from models.shapes.siblings.questions import AskedBatch, shapes_at
from models.shapes.siblings.sizes import random_size
from models.shapes.text import Encoders, Words, random_length
from models.shapes.train_flow import rows_of

ControlKind = Literal["canny", "depth"]
CHANNELS = 64
NOISE = 0.12  # the encoder is that far from the prescribed latents, and a little less
_FORMS = ("{things} on {ground}", "{things} on a {ground} background", "{things}, {ground} background")


@dataclass(frozen=True)
class Controlled:
    """A picture by its control picture and a prompt."""

    prompt: str
    scene: Scene
    layout: Layout


def random_controlled(width: int, height: int, rng: random.Random, *, held_out: bool = False) -> Controlled:
    """A random case in a `width` x `height` picture; the held-out side is asked by colours alone where they suffice."""
    scene = random_scene(rng, held_out=held_out)
    layout = lay_out(scene, width, height, rng)
    if held_out:
        return Controlled(colour_prompt(scene), scene, layout)
    if rng.random() < 0.5:
        return Controlled(caption(scene, rng), scene, layout)
    return Controlled(colour_prompt(scene, rng), scene, layout)


def colour_prompt(scene: Scene, rng: random.Random | None = None) -> str:
    """Just "red on blue" if all things have one colour, else each colour with its shape."""
    word = (lambda name: rng.choice(COLOUR_WORDS[name]) if rng.random() < 0.1 else name) if rng else str
    colours = {thing.colour for thing in scene.things}
    if len(colours) == 1:
        things = word(scene.things[0].colour)
        if rng and rng.random() < 0.3:
            things += rng.choice((" shapes", " things", " shape"))
    else:
        named = [f"{word(t.colour)} {rng.choice(SHAPE_WORDS[t.shape]) if rng else t.shape}" for t in scene.things]
        named = [f"{'an' if name[0] in 'aeio' else 'a'} {name}" for name in named]
        things = ", ".join(named[:-1]) + " and " + named[-1]
    form = rng.choice(_FORMS) if rng else _FORMS[0]
    return form.format(things=things, ground=word(scene.ground))


@dataclass(frozen=True)
class Controls:
    """Pictures with control pictures as numbers, before they are drawn."""

    whole: Drawing
    depth: Drawing | None  # edges of `whole`, `line` pixels wide, if None
    line: float
    words: Words

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Batch:
        """The batch, drawn on the encoders' device."""
        pooled, sequence = encoders.read(self.words)
        whole = self.whole.to(pooled.device)
        if self.depth is None:
            sampled = edge_fields(whole, self.line, LATENT_STEP)
        else:
            sampled = fields(self.depth.to(pooled.device), LATENT_STEP)
        control = pack(prescribed(*sampled))
        control = control + torch.rand_like(control[:, :1, :1]) * NOISE * torch.randn_like(control)
        read = pack(latents(whole)), pooled, sequence, whole.height, whole.width
        return AskedBatch(*read, channels=control, shapes=shapes_at(whole))


def plan_controls(
    encoders: Encoders, rng: random.Random, size: Size, length: int, count: int, kind: ControlKind | None = None
) -> Controls:
    """Fresh cases of one size and kind of control picture (random if None); a tenth has no prompt."""
    kind = kind or rng.choice(("canny", "depth"))
    cases = [random_controlled(*size, rng) for _ in range(count)]
    words = encoders.words(["" if rng.random() < 0.1 else case.prompt for case in cases], length)
    layouts = [case.layout for case in cases]
    depth = Drawing.of([depth_layout(layout, rng) for layout in layouts]) if kind == "depth" else None
    return Controls(Drawing.of(layouts), depth, rng.uniform(*LINE_WIDTHS), words)


plan_edges = partial(plan_controls, kind="canny")  # what the ControlNet learns


def draw_controlled(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch of one kind of control picture."""
    size = random_size(rng, done)
    return plan_controls(encoders, rng, size, random_length(rng), rows_of(size, tokens, most=96)).shown(encoders)


def judge_controlled(case: Controlled, reading: Reading) -> tuple[bool, bool]:
    """Whether every thing is read with its shape at its spot and nothing else, and whether all colours are right."""
    things = wanted(case.scene, case.layout)
    seen = [seen_at(reading, thing.x, thing.y) for thing in things]
    pairs = [(thing, one) for thing, one in zip(things, seen, strict=True) if one is not None]
    found = len(pairs) == len(things)
    shapes = found and len(reading.things) == len(things) and all(one.shape == thing.shape for thing, one in pairs)
    colours = found and reading.ground == case.scene.ground and all(one.colour == thing.colour for thing, one in pairs)
    return shapes, colours


class WithControlNet(nn.Module):
    """A frozen transformer and a ControlNet as one model whose tokens carry the control picture's channels behind."""

    def __init__(self, transformer: FluxTransformer2DModel, controlnet: FluxControlNetModel) -> None:
        super().__init__()
        self.transformer, self.controlnet = transformer.requires_grad_(False), controlnet

    def forward(self, hidden_states: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        """What FluxControlNetPipeline does in a step: (B, L, 64 + 64) -> the velocity (B, L, 64), in a tuple."""
        noisy, control = hidden_states.split([64, CHANNELS], dim=2)
        double, single = self.controlnet(hidden_states=noisy, controlnet_cond=control, **rest)
        outputs: tuple[Tensor, ...] = self.transformer(
            hidden_states=noisy, controlnet_block_samples=double, controlnet_single_block_samples=single, **rest
        )
        return outputs


def new_controlnet(transformer: FluxTransformer2DModel) -> FluxControlNetModel:
    """One double and one single block of the transformer, its outputs at zero."""
    config = transformer.config
    return FluxControlNetModel.from_transformer(
        transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    ).train()


def draw_edges(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch of edge pictures."""
    size = random_size(rng, done)
    return plan_edges(encoders, rng, size, random_length(rng), rows_of(size, tokens, most=96)).shown(encoders)
