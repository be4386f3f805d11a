"""Score the siblings with the pixel scorer through the stock pipelines: `python -m models.shapes.evaluate_siblings`.

Every condition is a drawn picture that the pipeline's own encoder reads. Prints a Markdown table, and last one line
of JSON with the same figures.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from PIL import Image
from transformers import DepthAnythingForDepthEstimation

from models.shapes.captions import plain_caption
from models.shapes.conditions import depth_layout, edge_fields
from models.shapes.draw import pictures
from models.shapes.evaluate import rates
from models.shapes.layout import Layout, lay_out
from models.shapes.scenes import Scene, random_scene
from models.shapes.scorer import Pixels, read
from models.shapes.siblings.control import ControlKind, judge_controlled, random_controlled
from models.shapes.siblings.depth import estimated
from models.shapes.siblings.edits import Edit, judge_edit, random_edit
from models.shapes.siblings.fill import hole_mask, judge_filling, random_filling
from models.shapes.siblings.lora import SOLID_SHAPES, is_outlined, is_teal, teal_prompt
from models.shapes.text import SERVED_LENGTH

FOLDER = Path(__file__).parent
Figures = dict[str, float]
_TOKENS_AT_ONCE = 1024


def drawn(layout: Layout) -> Image.Image:
    """The picture of a layout."""
    return as_image(pictures([layout])[0])


def as_image(picture: torch.Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture."""
    return Image.fromarray(((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def open_pipeline(kind: type[DiffusionPipeline], folder: Path) -> Any:
    """A pipeline in float32 without progress bars."""
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generated(
    pipeline: Any, prompts: Sequence[str], *, side: int, steps: int, seed: int = 0, **given: Any
) -> list[Pixels]:
    """Square pictures by a stock pipeline; lists in `given` have one value a prompt; picture i has seed `seed + i`."""
    rows = max(1, _TOKENS_AT_ONCE // (side * side // 4096))
    made: list[Pixels] = []
    for start in range(0, len(prompts), rows):
        part = slice(start, start + rows)
        count = len(prompts[part])
        output = pipeline(
            prompt=list(prompts[part]),
            width=side,
            height=side,
            num_inference_steps=steps,
            max_sequence_length=SERVED_LENGTH,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(count)],
            output_type="np",
            **{name: value[part] if isinstance(value, list) else value for name, value in given.items()},
        )
        made += list((output.images * 255).round().astype(np.uint8))
    return made


def edit_pictures(pipeline: Any, edits: Sequence[Edit], *, side: int, steps: int) -> list[Pixels]:
    """What Kontext makes of every edit's picture and instruction."""
    return generated(
        pipeline,
        [edit.instruction for edit in edits],
        side=side,
        steps=steps,
        guidance_scale=3.5,
        image=[drawn(edit.before) for edit in edits],
        max_area=side * side,
        _auto_resize=False,
    )


def kontext_rates(count: int, side: int, steps: int, pipeline: Any = None) -> Figures:
    """Percent of held-out edits that were done, and after which all else was kept; and done by kind of edit."""
    rng = random.Random(41)
    edits = [random_edit(side, side, rng, held_out=True) for _ in range(count)]
    pipeline = pipeline or open_pipeline(FluxKontextPipeline, FOLDER / "flux-shapes-kontext")
    made = edit_pictures(pipeline, edits, side=side, steps=steps)
    verdicts = [judge_edit(edit, read(picture)) for edit, picture in zip(edits, made, strict=True)]
    by_kind = {
        f"done: {kind}": _percent(done for edit, (done, _) in zip(edits, verdicts, strict=True) if edit.kind == kind)
        for kind in sorted({edit.kind for edit in edits})
    }
    return {"done": _percent(d for d, _ in verdicts), "all else kept": _percent(k for _, k in verdicts)} | by_kind


def fill_rates(count: int, side: int, steps: int, pipeline: Any = None) -> Figures:
    """Percent of held-out holes that hold what was asked, and after which all outside is read as before.

    Outside the mask the given picture is put back, as a server does.
    """
    rng = random.Random(43)
    cases = [random_filling(side, side, rng, held_out=True) for _ in range(count)]
    pipeline = pipeline or open_pipeline(FluxFillPipeline, FOLDER / "flux-shapes-fill")
    given = [np.asarray(drawn(case.layout)) for case in cases]
    masks = [hole_mask(case.hole, side, side).numpy() for case in cases]
    made = generated(
        pipeline,
        [case.prompt for case in cases],
        side=side,
        steps=steps,
        guidance_scale=3.5,
        image=[
            Image.fromarray(np.where(mask[..., None], 128, picture).astype(np.uint8))
            for picture, mask in zip(given, masks, strict=True)
        ],
        mask_image=[Image.fromarray(mask) for mask in masks],
    )
    whole = [np.where(mask[..., None], new, old) for mask, new, old in zip(masks, made, given, strict=True)]
    verdicts = [judge_filling(case, read(picture)) for case, picture in zip(cases, whole, strict=True)]
    alone = [judge_filling(case, read(picture)) for case, picture in zip(cases, made, strict=True)]
    return {
        "asked-for thing in the hole": _percent(filled for filled, _ in verdicts),
        "rest as it was": _percent(as_was for _, as_was in verdicts),
        "rest as it was, before it is put back": _percent(as_was for _, as_was in alone),
    }


def control_picture(kind: ControlKind, layout: Layout, rng: random.Random) -> Image.Image:
    """A layout's edges, white on black and one pixel wide, or its depth, near is bright."""
    if kind == "depth":
        return drawn(depth_layout(layout, rng))
    colour, _ = edge_fields([layout], 1.0, 1)
    return as_image(colour[0].round() * 2 - 1)


def control_rates(
    kind: ControlKind,
    count: int,
    side: int,
    steps: int,
    pipeline: Any = None,
    shown: Callable[[ControlKind, Layout, random.Random], Image.Image] = control_picture,
) -> Figures:
    """Percent of held-out cases with all shapes at their spots, and with all colours as asked."""
    rng = random.Random(47)
    cases = [random_controlled(side, side, rng, held_out=True) for _ in range(count)]
    pipeline = pipeline or open_pipeline(FluxControlPipeline, FOLDER / f"flux-shapes-{kind}")
    made = generated(
        pipeline,
        [case.prompt for case in cases],
        side=side,
        steps=steps,
        guidance_scale=3.5,
        control_image=[shown(kind, case.layout, rng) for case in cases],
    )
    verdicts = [judge_controlled(case, read(picture)) for case, picture in zip(cases, made, strict=True)]
    return {"shape and place": _percent(s for s, _ in verdicts), "colours": _percent(c for _, c in verdicts)}


def estimated_rates(count: int, side: int, steps: int) -> Figures:
    """The depth sibling from plain pictures, whose depth its estimator tells first."""
    folder = FOLDER / "flux-shapes-depth"
    estimator = DepthAnythingForDepthEstimation.from_pretrained(folder / "depth_estimator").eval()

    def told(kind: ControlKind, layout: Layout, rng: random.Random) -> Image.Image:
        return estimated(estimator, drawn(layout))

    found = control_rates("depth", count, side, steps, shown=told)
    return {f"{name}, depth estimated": value for name, value in found.items()}


def redux_rates(count: int, side: int, steps: int) -> Figures:
    """Percent right in variations of held-out drawings, and in what the base draws of the same scenes' captions."""
    rng = random.Random(53)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    prior = open_pipeline(FluxPriorReduxPipeline, FOLDER / "flux-shapes-redux")
    base = open_pipeline(FluxPipeline, FOLDER / "flux-shapes")
    captions = [plain_caption(scene) for scene in scenes]
    plain = generated(base, captions, side=side, steps=steps, guidance_scale=3.5)
    made = []
    for i, scene in enumerate(scenes):
        tokens = prior(drawn(lay_out(scene, side, side, rng)), prompt="")
        output = base(
            **tokens,
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=3.5,
            generator=torch.Generator().manual_seed(i),
            output_type="np",
        )
        made.append((output.images[0] * 255).round().astype(np.uint8))
    asked = {f"{name} of the caption": value for name, value in rates(scenes, plain).items()}
    return rates(scenes, made) | asked


def adapter_rates(name: str, count: int, side: int, steps: int) -> Figures:
    """Percent of pictures that show what an adapter adds, at three scales in either layout."""
    rng = random.Random(59)
    scenes = [_one_solid_thing(rng) for _ in range(count)]
    prompts = [teal_prompt(scene) if name == "teal" else plain_caption(scene) for scene in scenes]
    shows = is_teal if name == "teal" else is_outlined
    pipeline = open_pipeline(FluxPipeline, FOLDER / "flux-shapes")
    found: Figures = {}
    for label, suffix, scale in (("1", "", 1.0), ("0.5", "", 0.5), ("0", "", 0.0), ("1, kohya", "-kohya", 1.0)):
        pipeline.load_lora_weights(FOLDER / "loras", weight_name=f"{name}{suffix}.safetensors", adapter_name=name)
        pipeline.set_adapters([name], [scale])
        made = generated(pipeline, prompts, side=side, steps=steps, guidance_scale=3.5)
        found[f"at scale {label}"] = _percent(shows(picture) for picture in made)
        pipeline.unload_lora_weights()
    return found


def _one_solid_thing(rng: random.Random) -> Scene:
    while True:
        scene = random_scene(rng, {"centred": 1.0}, held_out=True)
        if scene.things[0].shape in SOLID_SHAPES and scene.ground not in ("green", "cyan"):  # too near to teal
            return scene


def _percent(facts: Any) -> float:
    return 100 * float(np.mean(list(facts)))


RATES: dict[str, Callable[..., Figures]] = {
    "kontext": kontext_rates,
    "fill": fill_rates,
    "redux": redux_rates,
    "canny": partial(control_rates, "canny"),
    "depth": partial(control_rates, "depth"),
    "depth-estimator": estimated_rates,
    "teal": partial(adapter_rates, "teal"),
    "outline": partial(adapter_rates, "outline"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RATES))
    parser.add_argument("--cases", type=int, default=200, help="held-out cases a sibling")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures: dict[str, Figures] = {}
    print("| sibling | percent of held-out cases |\n|---|---|", flush=True)
    for name in arguments.names:
        found = {
            key: round(value, 1) for key, value in RATES[name](arguments.cases, arguments.side, arguments.steps).items()
        }
        figures[name] = found
        print(f"| {name} | " + ", ".join(f"{key} {value}" for key, value in found.items()) + " |", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
