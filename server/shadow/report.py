"""What a replay found: a table for a terminal, JSON for programs, a page with both pictures side by side."""

from __future__ import annotations

import base64
import html
import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from server.shadow.compare import Comparison, PicturePair
from server.shadow.replay import Replayed

THUMBNAIL = 320
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Replay</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
  section {{ border-top: 1px solid #8884; padding: 1rem 0; }} h2 {{ font-size: 1rem; margin: 0; }}
  figure {{ display: inline-block; margin: .5rem 1rem .5rem 0; }} img {{ max-width: 100%; }}
  .breaks {{ color: #c22; }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>
<h1>Replay</h1><p>{summary}</p>
{sections}
</html>
"""


def line(number: int, replayed: Replayed, max_bits: int | None) -> str:
    """One request in one line."""
    found = replayed.comparison
    verdict = "breaks" if found.breaks(max_bits) else "same"
    times = f"{found.entry.seconds:.2f} -> {found.seconds:.2f} s"
    return "  ".join(filter(None, (f"{number:4}", f"{verdict:6}", f"{times:18}", found.entry.endpoint, _said(found))))


def _said(found: Comparison) -> str:
    pictures = ", ".join(map(_pair, found.pictures))
    return "; ".join(filter(None, (*found.lost, *found.gained, pictures)))


def _pair(pair: PicturePair) -> str:
    if pair.bits is None:
        return "picture missing on one side"
    before, now = pair.sizes
    moved = f"{_pixels(before)} -> {_pixels(now)}, " if before != now else ""
    return f"picture {moved}{pair.bits}/64 bits, colour {pair.colour}"


def _pixels(size: tuple[int, int] | None) -> str:
    return "none" if size is None else f"{size[0]}x{size[1]}"


def summary(found: Sequence[Replayed], max_bits: int | None) -> str:
    """The last line."""
    breaking = sum(each.comparison.breaks(max_bits) for each in found)
    far = [pair.bits for each in found for pair in each.comparison.pictures if pair.bits is not None]
    said = [f"{len(found)} requests, {breaking} would break a program"]
    if found:
        before = statistics.median(each.comparison.entry.seconds for each in found)
        said.append(f"median {before:.2f} -> {statistics.median(each.comparison.seconds for each in found):.2f} s")
    if far:
        said.append(f"pictures {statistics.median(far):.0f}/64 bits apart, at most {max(far)}")
    return "; ".join(said)


def as_json(found: Sequence[Replayed], max_bits: int | None) -> dict[str, Any]:
    """For programs."""
    return {
        "ok": not any(each.comparison.breaks(max_bits) for each in found),
        "requests": [_facts(each.comparison, max_bits) for each in found],
    }


def _facts(found: Comparison, max_bits: int | None) -> dict[str, Any]:
    entry = found.entry
    return {
        "endpoint": entry.endpoint,
        "mode": entry.mode,
        "asked_at": entry.asked_at,
        "breaks": found.breaks(max_bits),
        "status": [entry.status, found.end.status],
        "seconds": [entry.seconds, round(found.seconds, 4)],
        "inference": [entry.inference, found.end.inference],
        "lost": found.lost,
        "gained": found.gained,
        "pictures": [{"sizes": pair.sizes, "bits": pair.bits, "colour": pair.colour} for pair in found.pictures],
    }


def as_page(found: Sequence[Replayed], max_bits: int | None) -> str:
    """One HTML document that needs nothing else."""
    sections = "\n".join(_section(number, each, max_bits) for number, each in enumerate(found, 1))
    return _PAGE.format(summary=html.escape(summary(found, max_bits)), sections=sections)


def _section(number: int, replayed: Replayed, max_bits: int | None) -> str:
    found = replayed.comparison
    kind = "breaks" if found.breaks(max_bits) else "same"
    asked = json.dumps(found.entry.input, indent=1, ensure_ascii=False)
    figures = "".join(
        f"<figure><figcaption>{side}</figcaption>{_image(content)}</figure>"
        for pair in zip(replayed.before, replayed.now, strict=True)
        for side, content in zip(("recorded", "now"), pair, strict=True)
    )
    return (
        f'<section><h2 class="{kind}">{html.escape(line(number, replayed, max_bits))}</h2>{figures}'
        f"<details><summary>input</summary><pre>{html.escape(asked)}</pre></details></section>"
    )


def _image(content: bytes | None) -> str:
    try:
        with Image.open(io.BytesIO(content or b"")) as picture:
            small = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return "<p>none</p>"
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
