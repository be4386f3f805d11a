"""A report as people read it: tables of what matters, then every part as it was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from server.bench.report import table

Parts = Mapping[str, Mapping[str, Any]]
_LONGEST = 6000
"""Characters of one part; the JSON file has all."""


def markdown(report: Mapping[str, Any]) -> str:
    parts: Parts = report["parts"]
    lines = [f"# GPU report: {_card(parts)}", ""]
    for heading, rows in _TABLES.items():
        if found := list(_found(rows, parts)):
            lines += [f"## {heading}", "", table(found), ""]
    broken = [f"- {name}: {row['broke']}" for name, row in parts.items() if "broke" in row]
    lines += ["## What broke", "", *broken, ""] if broken else []
    for name, row in parts.items():
        text = json.dumps({key: value for key, value in row.items() if key != "traceback"}, indent=1, default=str)
        lines += [f"## Part {name}", "", "```", text[:_LONGEST], "```", ""]
    return "\n".join(lines)


def _card(parts: Parts) -> str:
    facts = parts.get("facts", {})
    lines = str(facts.get("nvidia_smi", "")).splitlines()
    return lines[1] if len(lines) > 1 else str(facts.get("environment", {}).get("device", "no GPU"))


def _found(rows: Callable[[Parts], Iterator[dict[str, str]]], parts: Parts) -> Iterator[dict[str, str]]:
    """The rows whose figures are there; a part may have broken anywhere."""
    try:
        yield from rows(parts)
    except (KeyError, TypeError, AttributeError):
        return


def _pictures(parts: Parts) -> Iterator[dict[str, str]]:
    names = {"ours": "bfloat16", "fp8": "float8", "stock": "diffusers, bfloat16"}
    for part, name in names.items():
        row = parts.get(part, {})
        if "median_s" in row:
            four = f"{row['four_steps_s']:.3f}" if "four_steps_s" in row else ""
            yield {"one picture after another": name, "s a picture": f"{row['median_s']:.3f}", "s in 4 steps": four}


def _step(parts: Parts) -> Iterator[dict[str, str]]:
    for part, name in {"profile": "bfloat16", "fp8": "float8"}.items():
        row = parts.get(part, {})
        if "step_ms" in row:
            host, count = row.get("host_ms_to_launch_a_step"), row.get("kernels", row.get("kernels_a_step"))
            yield {
                "one step": name,
                "ms": f"{row['step_ms']:.1f}",
                "device busy": f"{row['device_busy_ms']:.1f}",
                "kernels": str(count),
                "ms to launch": "" if host is None else f"{host:.1f}",
            }


def _ways(parts: Parts) -> Iterator[dict[str, str]]:
    for part in ("switches", "compiled"):
        for name, cells in parts.get(part, {}).get("ms_a_step", {}).items():
            if isinstance(cells, dict):
                yield {"ms a step": name} | {pack: f"{ms:.1f}" for pack, ms in cells.items()} | {"why not": ""}
            else:
                yield {"ms a step": name, "why not": str(cells)[:120]}


def _beside(parts: Parts) -> Iterator[dict[str, str]]:
    row = parts.get("picture", {})
    for side in ("admission", "decode"):
        for name, cell in row.get(side, {}).items():
            yield {"beside the steps": f"{side}: {name}", **{key: f"{ms:.2f}" for key, ms in cell.items()}}


def _energy(parts: Parts) -> Iterator[dict[str, str]]:
    for name, cell in parts.get("energy", {}).get("windows", {}).items():
        yield {
            "power": name,
            "W": f"{cell['watts']:.0f}",
            "J a picture": f"{cell['joules_a_picture']:.0f}",
            "SM MHz": f"{cell['sm_mhz_median']:.0f}",
        }


_TABLES: dict[str, Callable[[Parts], Iterator[dict[str, str]]]] = {
    "Pictures": _pictures,
    "Steps": _step,
    "Ways to run": _ways,
    "Beside the steps": _beside,
    "Energy": _energy,
}
