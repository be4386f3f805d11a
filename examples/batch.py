"""Draw every line of a text file, several at once, with a progress bar.

    pip install fal_client rich
    eval "$(fluxserve env --client python)"
    python batch.py prompts.txt --out pictures --at-once 8

Pictures are named by their line. A line whose picture is there is left out, so a run that was stopped goes on where it
was.
Exit status 1 if a line could not be drawn; the others are drawn all the same.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import fal_client
import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn


async def draw(prompt: str, place: Path, options: argparse.Namespace) -> None:
    """One picture into one file. Raises: fal_client.FalClientError, httpx.HTTPError."""
    asked: dict[str, Any] = {"prompt": prompt, "image_size": options.size, "num_images": 1}
    if options.steps:
        asked["num_inference_steps"] = options.steps
    result = await fal_client.subscribe_async(options.endpoint, asked)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = (await http.get(result["images"][0]["url"])).raise_for_status()
    unfinished = place.with_suffix(".part")
    unfinished.write_bytes(answer.content)
    unfinished.rename(place)


async def draw_all(prompts: dict[Path, str], options: argparse.Namespace) -> dict[str, str]:
    """What could not be drawn, and why."""
    failed: dict[str, str] = {}
    turns = asyncio.Semaphore(options.at_once)

    async def one(place: Path, prompt: str, bar: Progress, task: TaskID) -> None:
        async with turns:
            try:
                await draw(prompt, place, options)
            except (fal_client.FalClientError, httpx.HTTPError) as exc:
                failed[prompt] = str(exc)
        bar.advance(task)

    with Progress(*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("drawing", total=len(prompts))
        await asyncio.gather(*(one(place, prompt, bar, task) for place, prompt in prompts.items()))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw every line of a text file.")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--endpoint", default="fal-ai/flux/dev")
    parser.add_argument("--size", default="square")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [line.strip() for line in options.prompts.read_text().splitlines()]
    places = {options.out / f"{number:04}.jpg": line for number, line in enumerate(lines, 1) if line}
    waiting = {place: line for place, line in places.items() if not place.exists()}
    failed = asyncio.run(draw_all(waiting, options))
    console = Console(stderr=True)
    for prompt, reason in failed.items():
        console.print(f"not drawn: {prompt}: {reason}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
