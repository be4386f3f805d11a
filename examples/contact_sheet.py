"""Draw a list of prompts with alternatives, each with several seeds, as one contact sheet.

    pip install fal_client pillow
    eval "$(fluxserve env --client python)"
    python contact_sheet.py prompts.txt --seeds 1,2,3 --out sheet.png

`a {red|green} circle` is two prompts, as in ComfyUI's prompt lists. A row is a prompt, a column a seed: the same seed
gives the same picture whatever else is drawn, so the sheet can be made again.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fal_client
import httpx
from PIL import Image, ImageDraw, ImageFont

CELL = 256
MARGIN = 260
"""For the prompt, at the left of its row."""


def expanded(prompt: str) -> Iterator[str]:
    """Every choice of every `{a|b}`."""
    parts = re.split(r"\{([^{}]*)\}", prompt)
    choices = [part.split("|") if number % 2 else [part] for number, part in enumerate(parts)]
    yield from ("".join(words) for words in itertools.product(*choices))


def drawn(endpoint: str, prompt: str, seed: int) -> Image.Image:
    """One picture, as large as a cell."""
    result = fal_client.subscribe(endpoint, {"prompt": prompt, "seed": seed, "image_size": "square"})
    answer = httpx.get(result["images"][0]["url"], timeout=60).raise_for_status()
    return Image.open(io.BytesIO(answer.content)).convert("RGB").resize((CELL, CELL))


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Every row with its prompt."""
    columns = max(map(len, rows.values()))
    canvas = Image.new("RGB", (MARGIN + columns * CELL, len(rows) * CELL), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for number, (prompt, pictures) in enumerate(rows.items()):
        pen.multiline_text((12, number * CELL + 12), "\n".join(textwrap.wrap(prompt, 26)), "black", font)
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (MARGIN + column * CELL, number * CELL))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a list of prompts as a contact sheet.")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--seeds", default="1,2,3", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--endpoint", default="fal-ai/flux/dev")
    options = parser.parse_args()
    lines = [line.strip() for line in options.prompts.read_text().splitlines() if line.strip()]
    prompts = [prompt for line in lines for prompt in expanded(line)]
    with ThreadPoolExecutor(8) as pool:
        rows = {
            prompt: [pool.submit(drawn, options.endpoint, prompt, seed) for seed in options.seeds] for prompt in prompts
        }
        sheet({prompt: [picture.result() for picture in row] for prompt, row in rows.items()}).save(options.out)
    print(f"{len(prompts)} prompts x {len(options.seeds)} seeds: {options.out}")


if __name__ == "__main__":
    main()
