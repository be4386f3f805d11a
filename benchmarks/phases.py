"""Large pictures drawn at once against in two phases: seconds a picture, and how often the pixel scorer is content.

    python -m benchmarks.phases --prompts 24 --sheet phases.jpg

The same prompts and seeds, the embedded model, each picture alone. Seconds are processor time on a CPU, real time
elsewhere; medians. The last line is the report as JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import emit, environment
from models.accelerator import open_accelerator
from models.loading import silence_libraries
from models.registry import REGISTRY
from models.shapes.captions import plain_caption
from models.shapes.evaluate import held_out_scenes, rates
from models.shapes.scorer import Pixels
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.conditions import Condition, Refine
from pipelines.protocol.frames import Picture, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.report import table

SPEC = REGISTRY["flux-shapes"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--size", default="2752x1536", help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--sheet", type=Path, default=None, help="write the first pictures of every variant")
    return parser.parse_args(argv)


def draw(engine: Engine, params: GenerationParams, clock: Callable[[], float]) -> tuple[Pixels, float]:
    """One picture alone, and the seconds it took."""
    started = clock()
    engine.add_request(Submit("a", 1, params.to_dict()))
    found: list[Picture] = []
    while engine.has_work:
        found += [frame for frame in engine.step() if isinstance(frame, Picture)]
    (picture,) = found
    pixels = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)
    return pixels, clock() - started


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Pixels]]:
    """The report, and the pictures of every variant side by side, prompt after prompt."""
    accelerator = open_accelerator(arguments.device)
    pool = ModelPool([SPEC], accelerator)
    engine = Engine(pool.runner, accelerator, choose_acceleration=pool.choose_acceleration)
    clock = time.process_time if accelerator.kind == "cpu" else time.perf_counter
    width, _, height = arguments.size.partition("x")
    variants: dict[str, tuple[Condition, ...]] = {"at once": ()}
    variants |= {f"in two phases, strength {s:g}": (Refine(s),) for s in arguments.strength}
    drawn: dict[str, list[Pixels]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    scenes = held_out_scenes(arguments.prompts)
    for seed, scene in enumerate(scenes):
        for name, conditions in variants.items():
            params = GenerationParams(
                SPEC.name, plain_caption(scene), int(width), int(height), arguments.steps, 3.5, seed,
                max_sequence_length=SPEC.max_sequence_length, conditions=conditions,
            )  # fmt: skip
            pixels, took = draw(engine, params, clock)
            drawn[name].append(pixels)
            seconds[name].append(took)
    rows = {
        name: {"steps": _steps(arguments.steps, variants[name]), "seconds": round(median(seconds[name]), 2)}
        | {attribute: round(rate, 1) for attribute, rate in rates(scenes, drawn[name]).items()}
        for name in variants
    }
    report = {"environment": environment(accelerator.name), "prompts": arguments.prompts, "size": arguments.size}
    return report | {"variants": rows}, [drawn[name][i] for i in range(len(scenes)) for name in variants]


def sheet(pictures: Sequence[Pixels], columns: int, width: int = 280, gap: int = 4) -> Image.Image:
    """Small copies in a grid; all pictures have one shape."""
    height = width * pictures[0].shape[0] // pictures[0].shape[1]
    grid = Image.new("RGB", (columns * (width + gap), len(pictures) // columns * (height + gap)), "white")
    for i, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        grid.paste(small, (i % columns * (width + gap), i // columns * (height + gap)))
    return grid


def _steps(steps: int, conditions: tuple[Condition, ...]) -> str:
    phases = GenerationParams(SPEC.name, "", 64, 64, steps, 1.0, 0, conditions=conditions).phases
    return " + ".join(map(str, phases))


def main() -> None:
    arguments = parse()
    silence_libraries()
    with torch.no_grad():
        report, pictures = measure(arguments)
    variants = report["variants"]
    print(table([{"": name} | {key: str(value) for key, value in row.items()} for name, row in variants.items()]))
    if arguments.sheet:
        sheet(pictures[: 6 * len(variants)], columns=len(variants)).save(arguments.sheet, quality=85)
    emit(report)


if __name__ == "__main__":
    main()
