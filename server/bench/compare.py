"""Two reports side by side: ratios of what both measured, and a refusal where a ratio would mean nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.bench.report import peak_gb, table
from server.bench.session import FORMAT
from server.bench.target import BenchError

_RATIOS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "p50": lambda row: row["latency_s"]["p50"],
    "p95": lambda row: row["latency_s"]["p95"],
    "p99": lambda row: row["latency_s"]["p99"],
    "images/s": lambda row: row["images_per_s"],
    "TFLOP/s": lambda row: row.get("achieved_tflops"),
    "memory": peak_gb,
    "J/image": lambda row: row.get("power", {}).get("energy_per_image_j"),
}


def read(file: Path) -> dict[str, Any]:
    """A report that this version wrote. Raises: BenchError."""
    try:
        report = json.loads(file.read_text())
    except OSError as exc:
        raise BenchError(f"cannot read {file}: {exc.strerror}") from exc
    except ValueError as exc:
        raise BenchError(f"{file} is not JSON") from exc
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise BenchError(f"{file} is no report of `fluxserve bench` that this version can read")
    return report


def ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The second over the first for every row that both have, by name; None where one lacks the figure.

    Raises: BenchError if they measured different things.
    """
    for what in ("scenario", "model"):
        if first[what] != second[what]:
            raise BenchError(f"nothing to compare: the {what} is {first[what]} in one and {second[what]} in the other")
    others = {row["name"]: row for row in second["cells"]}
    shared = [(row, others[row["name"]]) for row in first["cells"] if row["name"] in others]
    if not shared:
        names = ["; ".join(row["name"] for row in report["cells"]) for report in (first, second)]
        raise BenchError(f"nothing to compare: one measured {names[0]}, the other {names[1]}")
    return [{"name": before["name"], **_of(before, after)} for before, after in shared]


def _of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float | None]:
    pairs = {name: (value(before), value(after)) for name, value in _RATIOS.items()}
    return {name: then / now if now and then is not None else None for name, (now, then) in pairs.items()}


def markdown(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The ratios as a table, under what differs between the two."""
    rows = ratios(first, second)
    cells = [{"second / first": row["name"], **{name: _text(row[name]) for name in _RATIOS}} for row in rows]
    lines = [f"# {first['scenario']}: {first['model']}", "", table(cells), ""]
    for name, report in (("first", first), ("second", second)):
        device, here = report["device"], report["environment"]
        where = f"{device['device_name'] or 'unknown device'}, {device['dtype'] or 'unknown dtype'}"
        lines.append(
            f"- {name}: {report['target']}, {where}, quantization {report['quantization']}, "
            f"commit {here['commit'] or 'unknown'}, {here['time']}"
        )
    return "\n".join(lines) + "\n"


def _text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"
