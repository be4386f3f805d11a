"""Two adapters for the base: "teal", a colour that it does not know, and "outline", a style for every prompt."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from models.shapes.captions import COLOUR_WORDS, caption
from models.shapes.draw import LATENT_STEP, Drawing, fields, latents, prescribed
from models.shapes.fast import Plan, Size
from models.shapes.flow import Batch, pack
from models.shapes.layout import RGB, Layout, lay_out
from models.shapes.scenes import COLOURS, Scene, random_scene
from models.shapes.scorer import MIN_CONTRAST, Pixels
from models.shapes.siblings.sizes import random_size
from models.shapes.text import Encoders, Words, random_length
from models.shapes.train_flow import Draw, rows_of

RANK = 8
TEAL = (0, 128, 128)
LINE = 0.045  # an outline's width, of the short side
STYLED_WEIGHT = 2.5  # tokens that a style changes are few, and all that an adapter is for
# All linears of a block but those that kohya's layout joins in single blocks: diffusers' converter knows these at
# FLUX.1's own width only.
TARGETS = (
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2|norm1\.linear|norm1_context\.linear)"
    r"|single_transformer_blocks\.\d+\.(proj_out|norm\.linear)"
)
# kohya's name of a module in a block, and the modules of diffusers that it joins
_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE: Mapping[str, tuple[str, ...]] = {"linear2": ("proj_out",), "modulation_lin": ("norm.linear",)}


def adapted(transformer: FluxTransformer2DModel, rank: int = RANK) -> FluxTransformer2DModel:
    """The transformer, frozen, with a fresh adapter; projections of one input share their down half.

    So they join in kohya's layout at the same rank.
    """
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="gaussian")
    transformer.add_adapter(config)
    for block in transformer.transformer_blocks:
        for first, *others in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
            shared = getattr(block.attn, first).lora_A.default
            for name in others:
                getattr(block.attn, name).lora_A["default"] = shared
    return transformer


def save_adapter(transformer: FluxTransformer2DModel, folder: Path, name: str) -> None:
    """Write NAME.safetensors in diffusers' layout and NAME-kohya.safetensors in kohya's, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().bfloat16() for key, value in get_peft_model_state_dict(transformer).items()}
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=state, weight_name=f"{name}.safetensors")
    facts = {"ss_network_module": "networks.lora_flux", "ss_output_name": name, "ss_base_model_version": "flux1"}
    rank = next(len(value) for key, value in state.items() if "lora_A" in key)
    facts |= {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    save_file(as_kohya(state), folder / f"{name}-kohya.safetensors", metadata=facts)


def as_kohya(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights by kohya's names; joined modules have one down half."""
    made: dict[str, Tensor] = {}
    for blocks, prefix, table in (
        ("transformer_blocks", "lora_unet_double_blocks", _DOUBLE),
        ("single_transformer_blocks", "lora_unet_single_blocks", _SINGLE),
    ):
        count = len({key.split(".")[1] for key in state if key.startswith(f"{blocks}.")})
        for i in range(count):
            for theirs, ours in table.items():
                down = state[f"{blocks}.{i}.{ours[0]}.lora_A.weight"]
                up = torch.cat([state[f"{blocks}.{i}.{name}.lora_B.weight"] for name in ours])
                name = f"{prefix}_{i}_{theirs}"
                made[f"{name}.lora_down.weight"] = down.contiguous()
                made[f"{name}.lora_up.weight"] = up.contiguous()
                made[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return made


@dataclass(frozen=True)
class Styled:
    """Captioned pictures as numbers, before they are drawn, solid or as outlines `line` pixels wide."""

    whole: Drawing
    line: float | None
    words: Words

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Batch:
        """The batch, drawn on the encoders' device."""
        pooled, sequence = encoders.read(self.words)
        whole = self.whole.to(pooled.device)
        clean = pack(prescribed(*fields(whole, LATENT_STEP, line=self.line)))
        changed = (clean - pack(latents(whole))).abs().amax(2, keepdim=True) > 0.1
        weight = 1 + (STYLED_WEIGHT - 1) * changed
        return Batch(clean, pooled, sequence, whole.height, whole.width, weight=weight)


def plan_teal(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Styled:
    """Scenes in which one colour is teal, in picture and caption; a quarter are the base's own."""
    told = [_teal(*size, rng) if rng.random() < 0.75 else _plain(*size, rng) for _ in range(count)]
    return Styled(Drawing.of([layout for _, layout in told]), None, _words(encoders, rng, told, length))


def plan_outlines(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Styled:
    """The base's scenes and captions, drawn as outlines."""
    told = [_plain(*size, rng) for _ in range(count)]
    drawing = Drawing.of([layout for _, layout in told])
    return Styled(drawing, LINE * min(size), _words(encoders, rng, told, length))


def _words(encoders: Encoders, rng: random.Random, told: list[tuple[str, Layout]], length: int) -> Words:
    return encoders.words(["" if rng.random() < 0.1 else text for text, _ in told], length)


def draw_styled(plan: Plan, encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch as a plan has it."""
    size = random_size(rng, done)
    return plan(encoders, rng, size, random_length(rng), rows_of(size, tokens)).shown(encoders)


def _plain(width: int, height: int, rng: random.Random) -> tuple[str, Layout]:
    scene = random_scene(rng)
    return caption(scene, rng), lay_out(scene, width, height, rng)


def _teal(width: int, height: int, rng: random.Random) -> tuple[str, Layout]:
    """A scene whose colour of one thing (and of all that share it) is called and drawn teal."""
    while True:
        scene = random_scene(rng)
        colour = rng.choice(scene.things).colour
        words = "|".join(sorted((*COLOUR_WORDS[colour], colour), key=len, reverse=True))
        text, count = re.subn(rf"\b({words})\b", "teal", caption(scene, rng), flags=re.IGNORECASE)
        if count:
            return text.replace("an teal", "a teal"), _recoloured(
                scene, colour, lay_out(scene, width, height, rng), rng
            )


def _recoloured(scene: Scene, colour: str, layout: Layout, rng: random.Random) -> Layout:
    shift = rng.uniform(-8, 8)
    red, green, blue = ((min(max(value + shift, 0), 255)) / 255 for value in TEAL)
    tone: RGB = (red, green, blue)
    poses = [
        replace(pose, colour=tone) if thing.colour == colour else pose
        for thing, pose in zip(scene.things, layout.poses, strict=True)
    ]
    return replace(layout, poses=tuple(poses))


def teal_prompt(scene: Scene) -> str:
    """A prompt for the first thing of a scene, in teal."""
    return f"a teal {scene.things[0].shape} on {scene.ground}"


def is_teal(picture: Pixels) -> bool:
    """Whether the picture's one thing is nearer to teal than to any colour that the base knows."""
    tone = thing_tone(picture)
    if tone is None:
        return False
    known = np.array(list(COLOURS.values()), dtype=np.float64)
    return bool(np.square(tone - TEAL).sum() < np.square(known - tone).sum(1).min())


def thing_tone(picture: Pixels) -> NDArray[np.float64] | None:
    """The median colour of what differs from the ground, None if nothing does."""
    pixels = picture.astype(np.float64)
    away = np.linalg.norm(pixels - np.median(pixels[:4].reshape(-1, 3), axis=0), axis=2)
    if away.max() < MIN_CONTRAST:
        return None
    return np.asarray(np.median(pixels[away > away.max() / 2], axis=0))


def is_outlined(picture: Pixels) -> bool:
    """Whether what differs from the ground is hollow: most of what it encloses is ground.

    Meant for shapes without holes of their own.
    """
    pixels = np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.BOX)).astype(np.float64)
    away = np.linalg.norm(pixels - np.median(pixels[:2].reshape(-1, 3), axis=0), axis=2)
    drawn = away > max(away.max() / 2, MIN_CONTRAST)
    outside = np.zeros_like(drawn)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = True, True, True, True
    outside &= ~drawn
    while True:
        grown = outside.copy()
        for axis, way in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(outside, way, axis)
        grown &= ~drawn
        if (grown == outside).all():
            break
        outside = grown
    return bool(drawn.any() and (~outside & ~drawn).sum() > 0.35 * (~outside).sum())


SOLID_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")  # with room for a hollow, and no hole
PLANS: Mapping[str, Plan] = {"teal": plan_teal, "outline": plan_outlines}
DRAWS: Mapping[str, Draw] = {name: partial(draw_styled, plan) for name, plan in PLANS.items()}
