"""Score the siblings with the pixel scorer through the stock pipelines: `python -m models.shapes.evaluate_siblings`.

Every condition is a drawn picture that the pipeline's own encoder reads. Prints a Markdown table, and last one line
of JSON with the same figures.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxKontextPipeline
from PIL import Image

from models.shapes.draw import pictures
from models.shapes.layout import Layout
from models.shapes.scorer import Pixels, read
from models.shapes.siblings.edits import Edit, judge_edit, random_edit
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


def _percent(facts: Any) -> float:
    return 100 * float(np.mean(list(facts)))


RATES: dict[str, Callable[[int, int, int], Figures]] = {"kontext": kontext_rates}


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
