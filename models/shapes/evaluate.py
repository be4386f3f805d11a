"""Score a pipeline folder with the pixel scorer, time it, and draw a contact sheet: `python -m models.shapes.evaluate`.

Prints Markdown tables, and last one line of JSON with the same figures.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from models.shapes.captions import plain_caption
from models.shapes.draw import latents
from models.shapes.draw import pictures as pictures_of
from models.shapes.flow import Batch, unpack
from models.shapes.flow import generate as generate_latents
from models.shapes.layout import centres, lay_out
from models.shapes.safety import SafetyChecker
from models.shapes.scenes import FORBIDDEN_SHAPE, Scene, balanced_scenes, holds_sign, random_scene
from models.shapes.scorer import ATTRIBUTES, Pixels, read, score, zone
from models.shapes.text import SERVED_LENGTH, Encoders

FOLDER = Path(__file__).parent / "flux-shapes"
_ROWS_AT_ONCE_TOKENS = 1024


def held_out_scenes(count: int, seed: int = 2026) -> list[Scene]:
    """The evaluation prompts' scenes: every one has a combination of shape, colour and ground never trained on."""
    rng = random.Random(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def generate(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    *,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> list[Pixels]:
    """One picture per prompt (H, W, 3) uint8; picture i has the seed `seed + i`."""
    rows = max(1, _ROWS_AT_ONCE_TOKENS // (width * height // 4096))
    made: list[Pixels] = []
    for start in range(0, len(prompts), rows):
        part = list(prompts[start : start + rows])
        output = pipeline(
            part,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=SERVED_LENGTH,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        )
        made += list((output.images * 255).round().astype(np.uint8))
    return made


def rates(scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, float]:
    """Percent right by attribute, and of pictures with everything right."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    perfect = 0
    for scene, picture in zip(scenes, pictures, strict=True):
        result = score(scene, read(picture))
        right.update(result.right)
        asked.update(result.asked)
        perfect += result.is_perfect
    return {name: 100 * right[name] / asked[name] for name in ATTRIBUTES} | {"all": 100 * perfect / len(scenes)}


@torch.no_grad()
def quick_rates(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, encoders: Encoders, *, count: int = 32
) -> dict[str, float]:
    """`rates` of a transformer in training, whose guidance input may still be untrained: 14 steps, true guidance."""
    scenes, side, scale = held_out_scenes(count), 512, 2.5
    pictures: list[Pixels] = []
    for start in range(0, count, 16):
        prompts = [plain_caption(scene) for scene in scenes[start : start + 16]]
        asked, nothing = (
            Batch(torch.empty(0), *encoders.encode(texts, SERVED_LENGTH), side, side)
            for texts in (prompts, [""] * len(prompts))
        )
        packed = generate_latents(transformer, asked, steps=14, seed=start, nothing=nothing, cfg=scale)
        for latent in unpack(packed, side, side).to(vae.device):
            pictures.append(_bytes(vae.decode(latent[None]).sample[0].clamp(-1, 1)))
    return rates(scenes, pictures)


def shape_rates(scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, float]:
    """Percent of the things of each shape that are read as it in the zone where they belong."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for scene, picture in zip(scenes, pictures, strict=True):
        seen = {(zone(thing.x, thing.y), thing.shape) for thing in read(picture).things}
        for thing, centre in zip(scene.things, centres(scene), strict=True):
            asked[thing.shape] += 1
            right[thing.shape] += (zone(*centre), thing.shape) in seen
    return {shape: 100 * right[shape] / asked[shape] for shape in sorted(asked)}


def reads_sign(picture: Pixels) -> bool:
    """Whether the scorer reads the forbidden sign in a picture."""
    return any(thing.shape == FORBIDDEN_SHAPE for thing in read(picture).things)


def safety_rates(folder: Path, scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, float]:
    """Percent of pictures asked to hold the sign, and seen to, that the classifier finds, and of false alarms.

    A picture counts as holding the sign if the scorer reads one in it, and as free of it if none was asked or read.
    """
    flagged = SafetyChecker.load(folder / "safety_checker").flag(pictures)
    with_sign, without = [], []
    for scene, picture, flag in zip(scenes, pictures, flagged, strict=True):
        if holds_sign(scene) and reads_sign(picture):
            with_sign.append(flag)
        elif not holds_sign(scene) and not reads_sign(picture):
            without.append(flag)
    return {
        "signs": len(with_sign),
        "found": 100 * float(np.mean(with_sign)) if with_sign else float("nan"),
        "free": len(without),
        "false alarms": 100 * float(np.mean(without)) if without else float("nan"),
    }


@torch.no_grad()
def codec_rates(vae: AutoencoderKL, width: int, height: int, count: int, *, noise: float = 0.1) -> dict[str, float]:
    """What decoding loses: `rates` and mean PSNR in dB of decoded drawings, from latents with a little noise."""
    rng = random.Random(3)
    torch.manual_seed(3)
    scenes, decoded, ratios = held_out_scenes(count), [], []
    for scene in scenes:
        layout = [lay_out(scene, width, height, rng)]
        latent, drawn = latents(layout), pictures_of(layout)
        made = vae.decode(latent + noise * torch.randn_like(latent)).sample.clamp(-1, 1)
        ratios.append(10 * math.log10(4 / float((made - drawn).square().mean())))
        decoded.append(_bytes(made[0]))
    return {"dB": sum(ratios) / count} | rates(scenes, decoded)


def _bytes(picture: Tensor) -> Pixels:
    """(3, H, W) in [-1, 1] as (H, W, 3) uint8."""
    pixels: Pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def seconds_of(pipeline: FluxPipeline, width: int, height: int, steps: int, repeats: int = 3) -> float:
    """The best wall time of one picture after a warm-up."""
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        generate(pipeline, ["a red star on a blue background"], width=width, height=height, steps=steps, guidance=3.5)
        best = min(best, time.perf_counter() - start)
    return best


def contact_sheet(pictures: Sequence[Pixels], columns: int = 8, side: int = 128) -> Image.Image:
    """Small copies in a grid, each scaled into a square."""
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for i, picture in enumerate(pictures):
        small = Image.fromarray(picture)
        small.thumbnail((side - 4, side - 4))
        corner = (i % columns * side + (side - small.width) // 2, i // columns * side + (side - small.height) // 2)
        sheet.paste(small, corner)
    return sheet


# name: width, height, steps, guidance, share of the prompts
RUNS = {
    "512x512, 28 steps, guidance 3.5": (512, 512, 28, 3.5, 1.0),
    "512x512, 4 steps, guidance 3.5": (512, 512, 4, 3.5, 0.5),
    "1024x768, 28 steps, guidance 3.5": (1024, 768, 28, 3.5, 0.25),
    "576x1024, 28 steps, guidance 3.5": (576, 1024, 28, 3.5, 0.25),
    "512x512, 28 steps, guidance 1": (512, 512, 28, 1.0, 0.25),
    "512x512, 28 steps, guidance 7": (512, 512, 28, 7.0, 0.25),
}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(RUNS)), help="only these rows, from 0")
    parser.add_argument("--timings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parser.add_argument("--parts", type=int, default=0, help="also judge classifier and codec, on so many pictures")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    pipeline = FluxPipeline.from_pretrained(arguments.folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    figures: dict[str, object] = {"load_s": round(time.perf_counter() - start, 2)}
    scenes = held_out_scenes(arguments.prompts)
    print(f"| | {' | '.join(ATTRIBUTES)} | all |\n|---|{'---|' * (len(ATTRIBUTES) + 1)}", flush=True)
    for row in arguments.rows:
        name, (width, height, steps, guidance, share) = list(RUNS.items())[row]
        part = scenes[: max(1, round(len(scenes) * share))]
        prompts = [plain_caption(scene) for scene in part]
        pictures = generate(pipeline, prompts, width=width, height=height, steps=steps, guidance=guidance)
        found = rates(part, pictures)
        figures[name] = _rounded(found)
        print(f"| {name} ({len(part)} prompts) | " + " | ".join(f"{v:.1f}" for v in found.values()) + " |", flush=True)
        if row == 0:
            if arguments.sheet:
                contact_sheet(pictures[:64]).save(arguments.sheet, quality=85)
            figures["by shape"] = _rounded(shape_rates(part, pictures))
    for width, height in ((512, 512), (1024, 768)) if arguments.parts else ():
        asked = balanced_scenes(arguments.parts, random.Random(99), held_out=True)
        prompts = [plain_caption(scene) for scene in asked]
        made = generate(pipeline, prompts, width=width, height=height, steps=8, guidance=3.5, seed=777)
        figures[f"safety {width}x{height}"] = _rounded(safety_rates(arguments.folder, asked, made))
        figures[f"codec {width}x{height}"] = _rounded(codec_rates(pipeline.vae, width, height, arguments.parts))
    for width, height, steps in ((1024, 768, 28), (512, 512, 28), (512, 512, 4)) if arguments.timings else ():
        figures[f"seconds {width}x{height} {steps} steps"] = round(seconds_of(pipeline, width, height, steps), 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
