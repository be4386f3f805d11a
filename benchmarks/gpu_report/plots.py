"""Pictures of a report: attention, linears, a step by kinds of kernels, ways to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.timing import class_of
from server.bench.plots import NoPlotsError

Row = Mapping[str, Any]


def plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write what there are figures for. Raises: NoPlotsError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise NoPlotsError("no plots: matplotlib is not installed (pip install matplotlib)") from exc
    written = []
    for name, draw in _PLOTS.items():
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axis = figure.subplots()
        if draw(axis, report["parts"]):
            figure.legend(loc="outside lower center", ncols=5, fontsize="small")
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110)
    return written


def _attention(axis: Any, parts: Mapping[str, Row]) -> bool:
    """Milliseconds, a group a pack, a bar a backend."""
    table: dict[str, dict[str, Any]] = parts.get("attention", {}).get("ms", {})
    names = list(dict.fromkeys(name for cells in table.values() for name, cell in cells.items() if _is_row(cell)))
    for index, name in enumerate(names):
        heights = [cells[name]["ms"] if _is_row(cells.get(name)) else 0 for cells in table.values()]
        axis.bar([at + index / (len(names) + 1) for at in range(len(table))], heights, 1 / (len(names) + 1), label=name)
    axis.set(ylabel="ms", title="attention of one block, 24 heads of 128, bfloat16")
    axis.set_xticks([at + 0.3 for at in range(len(table))], list(table))
    return bool(names)


def _linears(axis: Any, parts: Mapping[str, Row]) -> bool:
    """TFLOP/s of every linear, bfloat16 and float8, by the work in it."""
    lines = parts.get("linears", {}).get("table", [])
    for name in ("bf16", "float8"):
        timed = [line for line in lines if isinstance(line.get(f"{name}_ms"), float)]
        gflop = [2 * line["M"] * line["K"] * line["N"] / 1e9 for line in timed]
        points = [(work, work / line[f"{name}_ms"]) for work, line in zip(gflop, timed, strict=True)]
        if points:
            axis.plot(*zip(*sorted(points), strict=True), "o", label=name)
    axis.set(xlabel="GFLOP in the product", ylabel="TFLOP/s, quantising included", xscale="log", ylim=(0, None))
    axis.set_title("linears of FLUX.1's blocks at 512 to 4,608 rows")
    return bool(lines)


def _step(axis: Any, parts: Mapping[str, Row]) -> bool:
    """Milliseconds of a step by kind of kernel, a bar a form of the weights."""
    forms = {name: parts.get(part, {}) for name, part in (("bfloat16", "profile"), ("float8", "fp8"))}
    shown = {name: classes for name, row in forms.items() if (classes := _classes(row))}
    names = list(dict.fromkeys(kind for classes in shown.values() for kind in classes))
    left = [0.0] * len(shown)
    for kind in names:
        widths = [classes.get(kind, 0.0) for classes in shown.values()]
        axis.barh(list(shown), widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(xlabel="ms of the device", title="one step of the large picture")
    return bool(shown)


def _classes(row: Row) -> dict[str, float]:
    """From the kernels themselves, so that reports from before a class was named can be drawn."""
    classes: dict[str, float] = {}
    for line in row.get("top", ()):
        classes[class_of(line["kernel"])] = classes.get(class_of(line["kernel"]), 0.0) + line["ms"]
    return classes


def _ways(axis: Any, parts: Mapping[str, Row]) -> bool:
    """Milliseconds a step by way to run, a bar a pack."""
    table = {
        name: {pack: ms for pack, ms in cells.items() if not pack.endswith("first_s")}
        for part in ("switches", "compiled")
        for name, cells in parts.get(part, {}).get("ms_a_step", {}).items()
        if _is_row(cells)
    }
    packs = list(dict.fromkeys(pack for cells in table.values() for pack in cells))
    for index, pack in enumerate(packs):
        places = [at + index / (len(packs) + 1) for at in range(len(table))]
        axis.barh(places, [cells.get(pack, 0) for cells in table.values()], 1 / (len(packs) + 1), label=pack)
    axis.set_yticks([at + 0.25 for at in range(len(table))], list(table))
    axis.invert_yaxis()
    axis.set(xlabel="ms a step", title="ways to run")
    return bool(table)


def _is_row(cell: object) -> bool:
    return isinstance(cell, dict)


_PLOTS: dict[str, Callable[[Any, Mapping[str, Row]], bool]] = {
    "attention": _attention,
    "linears": _linears,
    "step": _step,
    "ways": _ways,
}
