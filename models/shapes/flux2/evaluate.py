"""Score a folder of flux2-shapes through the stock pipeline: `python -m models.shapes.flux2.evaluate --folder FOLDER`.

Prints one line of JSON: percent of held-out scenes right by attribute, and of held-out edits done.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline

from models.shapes.captions import plain_caption
from models.shapes.evaluate import contact_sheet, held_out_scenes, rates
from models.shapes.evaluate_siblings import drawn, generated
from models.shapes.scenes import Scene
from models.shapes.scorer import Pixels, read
from models.shapes.siblings.edits import judge_edit, random_edit

FOLDER = Path(__file__).parents[1] / "flux2-shapes"
Figures = dict[str, float]


def open_pipeline(folder: Path) -> Any:
    """The stock pipeline in float32, without progress bars."""
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing_rates(pipeline: Any, count: int, side: int, steps: int) -> Figures:
    """Percent right by attribute, and of pictures with everything right."""
    scenes = held_out_scenes(count)
    return rates(scenes, drawings(pipeline, scenes, side, steps))


def drawings(pipeline: Any, scenes: Sequence[Scene], side: int, steps: int) -> list[Pixels]:
    """What it draws by the scenes' plain captions."""
    prompts = [plain_caption(scene) for scene in scenes]
    return generated(pipeline, prompts, side=side, steps=steps, guidance_scale=1.0)


def edit_rates(pipeline: Any, count: int, side: int, steps: int) -> Figures:
    """Percent of edits that were done, and after which all else was kept."""
    rng = random.Random(41)
    edits = [random_edit(side, side, rng, held_out=True) for _ in range(count)]
    made = [
        generated(pipeline, [edit.instruction], side=side, steps=steps, seed=seed, guidance_scale=1.0, image=picture)[0]
        for seed, edit in enumerate(edits)
        for picture in (drawn(edit.before),)
    ]
    verdicts = [judge_edit(edit, read(picture)) for edit, picture in zip(edits, made, strict=True)]
    done, kept = (100 * sum(verdict[i] for verdict in verdicts) / count for i in (0, 1))
    by_kind = {
        f"{kind} done": 100 * sum(verdicts[i][0] for i in chosen) / len(chosen)
        for kind in sorted({edit.kind for edit in edits})
        for chosen in ([i for i, edit in enumerate(edits) if edit.kind == kind],)
    }
    return {"edits done": done, "all else kept": kept} | by_kind


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 32 drawings here instead")
    arguments = parser.parse_args()
    pipeline = open_pipeline(arguments.folder)
    asked = arguments.prompts, arguments.side, arguments.steps
    if arguments.sheet:
        contact_sheet(drawings(pipeline, held_out_scenes(32), *asked[1:])).save(arguments.sheet, quality=85)
        return
    print(json.dumps(drawing_rates(pipeline, *asked) | edit_rates(pipeline, *asked)))


if __name__ == "__main__":
    main()
