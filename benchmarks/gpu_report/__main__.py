"""All that is worth knowing of a GPU, part by part in order of value, in one folder ready to be kept or sent.

    python -m benchmarks.gpu_report --out gpu-report          (or: fluxserve doctor --gpu-report)
    python -m benchmarks.gpu_report --out gpu-report --render (tables and plots anew, from its report.json)

report.json is written anew after every part, report.md and plots at the end; torch's tables of kernels and two small
pictures lie beside them. A part that breaks or takes too long says so, and the others are run. The model has random
weights, made on the device: true speed, no quality. On a CPU with a small model it runs, too; its times say nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.beside_steps import picture
from benchmarks.gpu_report.bits import bits
from benchmarks.gpu_report.facts import facts
from benchmarks.gpu_report.gpu_tests import SECONDS, gpu_tests
from benchmarks.gpu_report.parts import Part, Report
from benchmarks.gpu_report.pictures import caching, energy, float8, load_model, ours, schnell, small, stock
from benchmarks.gpu_report.plots import plots
from benchmarks.gpu_report.single_operations import attention, linears
from benchmarks.gpu_report.smoke import smoke
from benchmarks.gpu_report.steps import compiled, profile, switches
from benchmarks.gpu_report.subject import Options, Subject
from benchmarks.gpu_report.summary import markdown
from models.accelerator import DeviceError, open_accelerator
from models.loading import silence_libraries
from server.bench.plots import NoPlotsError

_ENVIRONMENT = 3
"""The exit status of a machine that lacks something, as of every command."""

PARTS = (
    Part("facts", 60, facts),
    Part("smoke", 90, smoke),
    Part("load", 300, load_model),
    Part("ours", 90, ours),
    Part("profile", 60, profile),
    Part("picture", 60, picture),
    Part("fp8", 90, float8),
    Part("bits", 60, bits),
    Part("attention", 60, attention),
    Part("linears", 60, linears),
    Part("switches", 120, switches),
    Part("small", 90, small),
    Part("caching", 90, caching),
    Part("energy", 10, energy),
    Part("schnell", 60, schnell, needs_gpu=True),
    Part("stock", 90, stock),
    Part("compiled", 150, compiled, needs_gpu=True),
    Part("tests", SECONDS, gpu_tests, needs_gpu=True),
)
"""In order of value: whoever has little time has the first ones."""


def measure(options: Options) -> dict[str, Any]:
    """Run the parts and return the report; report.json holds it all along."""
    subject = Subject(options)
    report = Report(subject, {"benchmark": "gpu_report", "options": _plain(options)})
    try:
        report.run(PARTS)
    finally:
        subject.power.close()
    return report.content


def _plain(options: Options) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(options) if field.name != "out"}


def render(report: Mapping[str, Any], out: Path) -> None:
    """Tables and plots."""
    (out / "report.md").write_text(markdown(report))
    try:
        plots(report, out)
    except NoPlotsError as exc:
        print(exc)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder, made if need be")
    parser.add_argument("--budget", type=float, default=Options.budget_s, help="seconds for everything")
    parser.add_argument("--device", default=Options.device)
    parser.add_argument("--model", default=Options.model)
    parser.add_argument("--size", type=int, default=Options.size, help="side of the large picture in pixels")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], default=())
    parser.add_argument("--render", action="store_true", help="measure nothing: tables and plots of the report there")
    return parser.parse_args(argv)


def main() -> None:
    given = parse()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.render:
        report = json.loads((given.out / "report.json").read_text())
    else:
        silence_libraries()
        options = Options(
            given.out, given.device, given.model, given.size, given.steps, given.budget, tuple(given.only)
        )
        if reason := impossible(options):
            print(reason, file=sys.stderr)
            sys.exit(_ENVIRONMENT)
        report = measure(options)
    render(report, given.out)


def impossible(options: Options) -> str | None:
    """Why nothing can be measured here, in one sentence; None if something can."""
    try:
        kind = open_accelerator(options.device).kind
    except DeviceError as exc:
        return str(exc)
    if kind == "cpu" and options.model == Options.model:
        return (
            f"{options.model} needs a GPU and there is none: --model flux-shapes --size 128 shows the report without."
        )
    return None


if __name__ == "__main__":
    main()
