"""Score the two folders of sdxl-shapes through the stock pipeline: `python -m models.shapes.sdxl.evaluate`.

Prints one line of JSON a folder: percent of held-out scenes right by attribute.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from models.shapes.captions import plain_caption
from models.shapes.evaluate import held_out_scenes, rates
from models.shapes.evaluate_siblings import open_pipeline

FOLDER = Path(__file__).parents[1] / "sdxl-shapes"


def drawing_rates(pipeline: Any, count: int, side: int, steps: int, guidance: float) -> dict[str, float]:
    """Percent right by attribute, and of pictures with everything right."""
    scenes, made = held_out_scenes(count), []
    for seed, scene in enumerate(scenes):
        drawn = pipeline(
            plain_caption(scene),
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
        )
        made.append(np.asarray(drawn.images[0]))
    return rates(scenes, made)


def main() -> None:
    """Print the figures: Playground's 25 steps with its guidance, Lightning's 4 without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    arguments = parser.parse_args()
    lightning = arguments.folder.with_name(f"{arguments.folder.name}-lightning")
    for folder, steps, guidance in ((arguments.folder, 25, 3.0), (lightning, 4, 0.0)):
        pipeline = open_pipeline(StableDiffusionXLPipeline, folder)
        figures = drawing_rates(pipeline, arguments.prompts, arguments.side, steps, guidance)
        print(json.dumps({"folder": folder.name} | figures), flush=True)


if __name__ == "__main__":
    main()
