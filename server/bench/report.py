"""A report as people read it (Markdown) and as files: JSON, Markdown and, with matplotlib, pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Column = tuple[str, Callable[[Mapping[str, Any]], Any], str]
"""(heading with its unit, value of a row or None, format)"""

COLUMNS: tuple[Column, ...] = (
    ("requests", lambda row: row["requests"], "d"),
    ("failed", lambda row: row["failed"] or None, "d"),
    ("p50 s", lambda row: row["latency_s"]["p50"], ".3f"),
    ("p95 s", lambda row: row["latency_s"]["p95"], ".3f"),
    ("p99 s", lambda row: row["latency_s"]["p99"], ".3f"),
    ("images/s", lambda row: row["images_per_s"], ".4g"),
    ("TFLOP/image", lambda row: row.get("tflop_per_image"), ".4g"),
    ("TFLOP/s", lambda row: row.get("achieved_tflops"), ".4g"),
    ("of ceiling", lambda row: row.get("share_of_ceiling"), ".0%"),
    ("floor s", lambda row: row.get("floor_s"), ".3f"),
    ("memory GB", lambda row: peak_gb(row), ".2f"),
    ("J/image", lambda row: row.get("power", {}).get("energy_per_image_j"), ".4g"),
    ("W", lambda row: row.get("power", {}).get("mean_w"), ".0f"),
    ("SM MHz", lambda row: row.get("power", {}).get("sm_mhz", {}).get("p50"), ".0f"),
)


def peak_gb(row: Mapping[str, Any]) -> float | None:
    """10^9 bytes at the highest, as far as the worker told: its own peak if it keeps one."""
    sizes = row.get("memory_bytes", {})
    size = sizes.get("peak", sizes.get("used"))
    return None if size is None else size / 1e9


def markdown(report: Mapping[str, Any]) -> str:
    """The table with what a reader must know above and below it."""
    device = report["device"]["device_name"] or "an unknown device"
    precision = ", ".join(
        filter(
            None,
            [
                report["device"]["dtype"],
                _unless_none(report["quantization"]),
                report.get("tuning"),
                _unless_none(report["plan"].get("acceleration", "none")),
            ],
        )
    )
    title = f"# {report['scenario']}: {report['model']} through the {report['target']}, {device}"
    rows = [{"": row["name"], **_cells(row)} for row in report["cells"]]
    lines = [title + (f" ({precision})" if precision else ""), "", table(rows), "", *_notes(report)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; columns without a single value are left out."""
    headings = [name for name in rows[0] if any(row.get(name) for row in rows)]
    lines = [headings, ["---"] * len(headings)] + [[row.get(name, "") for name in headings] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    values = {heading: (value(row), form) for heading, value, form in COLUMNS}
    return {heading: "" if value is None else format(value, form) for heading, (value, form) in values.items()}


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Everything that bears on the figures, a line each."""
    here, plan, ceiling = report["environment"], report["plan"], report["ceiling"]
    versions = ", ".join(f"{name} {value}" for name, value in here["versions"].items() if value)
    lines = [
        f"- {plan['count']} requests a row after {plan['warmup']} of each shape to warm up; safety checker off.",
        f"- {here['time']}, commit {here['commit'] or 'unknown'}, {versions}.",
        f"- {here['cpu']}, {here['cores']} cores, load {here['load_average']:.2f}; driver {here['driver'] or 'none'}.",
        f"- `{here['command']}`",
    ]
    if ceiling is not None:
        lines.insert(1, f"- Ceiling: {ceiling['tflops']:g} TFLOP/s, {ceiling['source']}.")
    lines += [f"- {note}." for note in report.get("notes", ())]
    for row in report["cells"]:
        if reasons := row.get("power", {}).get("throttled_by"):
            lines.append(f"- {row['name']}: the card was throttled by {', '.join(reasons)}.")
        if row["errors"]:
            lines.append(f"- {row['name']}: {row['failed']} failed: {'; '.join(row['errors'])}")
    return lines


def _unless_none(value: str) -> str:
    return "" if value == "none" else value


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Both files under a name that says what and when. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = re.sub(r"[^0-9T]", "", report["environment"]["time"].partition("+")[0])
    words = (report["scenario"], report["target"], report["model"], moment)
    stem = folder / "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-") for word in words)
    files = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md")]
    files[0].write_text(json.dumps(report, indent=1) + "\n")
    files[1].write_text(markdown(report))
    return files
