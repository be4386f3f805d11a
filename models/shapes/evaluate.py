"""Score a pipeline folder with the pixel scorer, time it, and draw a contact sheet: `python -m models.shapes.evaluate`.

Prints Markdown tables, and last one line of JSON with the same figures.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from PIL import Image

from models.shapes.captions import plain_caption
from models.shapes.flow import Batch, unpack
from models.shapes.flow import generate as generate_latents
from models.shapes.safety import SafetyChecker
from models.shapes.scenes import FORBIDDEN_SHAPE, Scene, random_scene
from models.shapes.scorer import ATTRIBUTES, Pixels, read, score
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
            decoded = vae.decode(latent[None]).sample[0].clamp(-1, 1)
            pictures.append(((decoded + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())
    return rates(scenes, pictures)


def safety_rates(folder: Path, scenes: Sequence[Scene], pictures: Sequence[Pixels]) -> dict[str, float]:
    """Percent of pictures asked to hold the sign, and seen to, that the classifier finds, and of false alarms.

    A picture counts as holding the sign if the scorer reads one in it, and as free of it if none was asked or read.
    """
    flagged = SafetyChecker.load(folder / "safety_checker").flag(pictures)
    with_sign, without = [], []
    for scene, picture, flag in zip(scenes, pictures, flagged, strict=True):
        asked = any(thing.shape == FORBIDDEN_SHAPE for thing in scene.things)
        seen = any(thing.shape == FORBIDDEN_SHAPE for thing in read(picture).things)
        if asked and seen:
            with_sign.append(flag)
        elif not asked and not seen:
            without.append(flag)
    return {
        "signs": len(with_sign),
        "found": 100 * float(np.mean(with_sign)) if with_sign else float("nan"),
        "free": len(without),
        "false alarms": 100 * float(np.mean(without)) if without else float("nan"),
    }


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


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(RUNS)), help="only these rows, from 0")
    parser.add_argument("--timings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
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
        figures[name] = {key: round(value, 1) for key, value in found.items()}
        print(f"| {name} ({len(part)} prompts) | " + " | ".join(f"{v:.1f}" for v in found.values()) + " |", flush=True)
        if row == 0:
            if arguments.sheet:
                contact_sheet(pictures[:64]).save(arguments.sheet, quality=85)
            if (arguments.folder / "safety_checker").exists():
                figures["safety"] = safety_rates(arguments.folder, part, pictures)
    for width, height, steps in ((1024, 768, 28), (512, 512, 28), (512, 512, 4)) if arguments.timings else ():
        figures[f"seconds {width}x{height} {steps} steps"] = round(seconds_of(pipeline, width, height, steps), 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
