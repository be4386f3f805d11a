"""A contact sheet of everything that takes a picture, drawn by a running server: in, mask or edges, prompt, out.

`python -m benchmarks.sheet --url http://127.0.0.1:8000 --out docs/pictures-sheet.jpg`
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from models.shapes.conditions import Hole
from models.shapes.draw import pictures
from models.shapes.layout import lay_out
from models.shapes.scenes import Scene, Thing
from models.shapes.siblings.fill import hole_mask

SIDE = 512
CELL = 192
MARGIN = 8
_SIZE: dict[str, Any] = {"image_size": {"width": SIDE, "height": SIDE}}


@dataclass(frozen=True)
class Row:
    """One endpoint's call; `@picture` and `@mask` in its input stand for what is drawn here."""

    endpoint: str
    prompt: str
    input: dict[str, Any]


PICTURE, MASK = {"image_url": "@picture"}, {"mask_url": "@mask"}
EDGES = {"path": "flux-shapes-controlnet-canny", "control_image_url": "@picture"}
ROWS = (
    Row("flux/dev", "a red star and a blue heart on a white background", _SIZE),
    Row("flux/dev/image-to-image", "a green circle", PICTURE | {"strength": 0.85}),
    Row("flux-lora/inpainting", "a purple star", PICTURE | MASK | {"strength": 0.95}),
    Row("flux-pro/v1/fill", "a purple star", PICTURE | MASK),
    Row("flux-pro/v1/erase", "", PICTURE | MASK),
    Row("flux-pro/v1/canny", "orange on black", _SIZE | {"control_image_url": "@picture"}),
    Row("flux-pro/v1/depth", "orange on black", _SIZE | {"control_image_url": "@picture"}),
    Row("flux-pro/v1/redux", "", _SIZE | PICTURE),
    Row("flux-kontext/dev", "make the circle green", PICTURE),
    Row("flux-kontext/dev", "remove the star", PICTURE),
    Row("flux-kontext/dev", "turn the background black", PICTURE),
    Row("flux-lora", "a red heart on white", _SIZE | {"loras": [{"path": "outline"}]}),
    Row("flux-general", "a yellow circle and a yellow star on blue", _SIZE | {"controlnets": [EDGES]}),
)


def inputs() -> dict[str, Image.Image]:
    """A red circle and a yellow star on blue, and a mask around the circle."""
    scene = Scene("blue", (Thing("circle", "red", "left"), Thing("star", "yellow", "right")))
    layout = lay_out(scene, SIDE, SIDE, random.Random(4))
    picture = ((pictures([layout])[0] + 1) * 127.5).round().to(torch.uint8)
    circle = layout.poses[0]
    reach = 1.3 * circle.radius
    hole = Hole(circle.x - reach, circle.y - reach, circle.x + reach, circle.y + reach)
    mask = hole_mask(hole, SIDE, SIDE).numpy().astype(np.uint8) * 255
    return {"picture": Image.fromarray(picture.permute(1, 2, 0).numpy()), "mask": Image.fromarray(mask)}


def as_data_uri(picture: Image.Image) -> str:
    """A picture as fal's clients send a small file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def filled(value: Any, given: dict[str, Image.Image]) -> Any:
    """An input with the pictures in their places."""
    if isinstance(value, dict):
        return {name: filled(one, given) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, given) for one in value]
    return as_data_uri(given[value[1:]]) if isinstance(value, str) and value[:1] == "@" else value


def ask(client: httpx.Client, row: Row, given: dict[str, Image.Image]) -> Image.Image | str:
    """What the server draws, or its words where it draws nothing."""
    body = {"prompt": row.prompt, "seed": 7, "output_format": "png"} | filled(row.input, given)
    answer = client.post(f"/fal-ai/{row.endpoint}", json=body)
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    drawn = client.get(answer.json()["images"][0]["url"])
    return Image.open(io.BytesIO(drawn.content)).convert("RGB")


def sheet(rows: list[tuple[Row, Image.Image | str]], given: dict[str, Image.Image]) -> Image.Image:
    """All rows, two side by side: what was sent, what was asked, what came."""
    font = ImageFont.load_default(size=15)
    width, height = 4 * CELL + 5 * MARGIN, CELL + MARGIN
    lines = (len(rows) + 1) // 2
    whole = Image.new("RGB", (2 * width, lines * height + MARGIN), "white")
    draw = ImageDraw.Draw(whole)
    for i, (row, came) in enumerate(rows):
        left, top = (i // lines) * width + MARGIN, (i % lines) * height + MARGIN
        shown = [what for what in given if f"@{what}" in str(row.input)]
        for column, what in enumerate(shown):
            whole.paste(given[what].convert("RGB").resize((CELL, CELL)), (left + column * (CELL + MARGIN), top))
        words = f"{row.endpoint}\n\n{_wrapped(row.prompt) or '(no prompt)'}"
        draw.multiline_text((left + 2 * (CELL + MARGIN), top + 40), words, fill="black", font=font)
        spot = (left + 3 * (CELL + MARGIN), top)
        if isinstance(came, str):
            draw.multiline_text(spot, _wrapped(came), fill="firebrick", font=font)
        else:
            whole.paste(came.resize((CELL, CELL)), spot)
    return whole


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.strip() for line in lines)


def main() -> None:
    """Ask for every row and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running server (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("pictures-sheet.jpg"))
    arguments = parser.parse_args()
    given = inputs()
    headers = {"authorization": f"Key {os.environ['FAL_KEY']}"} if "FAL_KEY" in os.environ else {}
    with httpx.Client(base_url=arguments.url, timeout=600, headers=headers) as client:
        rows = [(row, ask(client, row, given)) for row in track(ROWS, "drawing")]
    sheet(rows, given).save(arguments.out, quality=88)
    for row, came in rows:
        print(f"{row.endpoint}: {came if isinstance(came, str) else 'drawn'}")


if __name__ == "__main__":
    main()
