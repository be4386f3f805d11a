"""What `acceleration` does to pictures: the same prompts and seeds, exact and accelerated, in one run.

    python -m benchmarks.quality --model flux-shapes --prompts 48 --sheet quality.jpg
    python -m benchmarks.quality --model random:FLUX.1-dev --device cuda:0 --sizes 1024x1024
    python -m benchmarks.quality --acceleration regular --tuning round_attention=on

Variants: `regular` is float8 weights, `high` float8 weights and step caching, `caching` step caching alone (what `high`
is where a worker holds no float8 weights), `coarse` coarse first steps alone, `both` these and step caching (what `max`
is there). Against the exact picture: PSNR over all pixels and SSIM of the luma (Wang
et al. 2004: Gaussian window of 11, sigma 1.5), means over pictures; for the embedded model also how often the pixel
scorer finds what was asked. LPIPS needs weights that nothing here brings along, so it is not measured. Random weights
draw noise: for them the hit pattern is forced, and distances mean nothing. Step time is one thread's processor time on
a CPU (where float8 is emulated), real time elsewhere. The last line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import emit, environment
from models.accelerator import Accelerator, open_accelerator, pick_dtype
from models.arguments import resolve
from models.components import FluxComponents
from models.float8 import share
from models.loading import load, silence_libraries
from models.quantization import quantize
from models.shapes.captions import plain_caption
from models.shapes.evaluate import contact_sheet, held_out_scenes, rates
from models.shapes.scenes import Scene
from models.shapes.scorer import Pixels
from models.tuning import parse_tuning
from pipelines.engine.acceleration import AccelerationChoice, ChooseAcceleration
from pipelines.engine.engine import Engine
from pipelines.engine.request import Row
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.step_cache import FirstBlockRule, HitRule
from pipelines.protocol.frames import Failed, Picture, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.report import table

AT_ONCE = 8
"""Requests under way together."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to draw. Args: with float8 weights or the exact ones; skipping steps; with a coarse share of them."""

    name: str
    float8: bool = False
    caches_steps: bool = False
    is_coarse: bool = False

    def choice(self, params: GenerationParams) -> AccelerationChoice:
        """As the engine is told, whatever the request says."""
        return AccelerationChoice(params.model, self.caches_steps, self.is_coarse)


EXACT = Variant("none")
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("regular", float8=True),
        Variant("high", float8=True, caches_steps=True),
        Variant("caching", caches_steps=True),
        Variant("coarse", is_coarse=True),
        Variant("both", caches_steps=True, is_coarse=True),
        Variant("max", float8=True, caches_steps=True, is_coarse=True),
    )
}


@dataclass(frozen=True, slots=True)
class ForcedHits:
    """Skips all but every `period`-th step where requests may skip, whatever changed: for weights without meaning."""

    period: int = 2

    def may_hit(self, step: int, num_steps: int, hits_in_row: int) -> bool:
        return FirstBlockRule().may_hit(step, num_steps, hits_in_row)

    def is_hit(self, step: int, change: float) -> bool:
        return step % self.period != 0


@dataclass(slots=True)
class Meter:
    """What the steps of one variant cost: steps of single pictures, hits among them, shares of the blocks they ran."""

    seconds: float = 0.0
    steps: int = 0
    hits: int = 0
    blocks: float = 0.0

    @contextmanager
    def watching(self, runner: FluxRunner, accelerator: Accelerator) -> Iterator[None]:
        denoise = runner.denoise
        clock = time.thread_time if accelerator.kind == "cpu" else time.perf_counter

        def timed(rows: Sequence[Row]) -> None:
            began = clock()
            denoise(rows)
            accelerator.mark().wait()
            self.seconds += clock() - began
            self.steps += len(rows)
            self.hits += sum(row.computed < 1 for row in rows)
            self.blocks += sum(row.computed for row in rows)

        runner.denoise = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            runner.denoise = denoise  # type: ignore[method-assign]


def draw(
    runner: FluxRunner,
    accelerator: Accelerator,
    wanted: Sequence[GenerationParams],
    meter: Meter,
    choose: ChooseAcceleration,
) -> list[Pixels]:
    """The pictures in order, through the engine, some at once."""
    drawn: dict[int, Pixels] = {}
    engine = Engine(lambda name: runner, accelerator, choose_acceleration=choose)
    with meter.watching(runner, accelerator):
        for start in range(0, len(wanted), AT_ONCE):
            for index, params in enumerate(wanted[start : start + AT_ONCE], start):
                engine.add_request(Submit(str(index), 1, params.to_dict()))
            while engine.has_work:
                for frame in engine.step():
                    if isinstance(frame, Failed):
                        raise RuntimeError(frame.message)
                    if isinstance(frame, Picture):
                        pixels = np.frombuffer(frame.pixels, np.uint8)
                        drawn[int(frame.job_id)] = pixels.reshape(frame.height, frame.width, 3)
    return [drawn[index] for index in range(len(wanted))]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal to noise ratio in dB of 8-bit pictures; infinite for equal ones."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: Pixels, b: Pixels) -> float:
    """Mean structural similarity of the luma, in [-1, 1] (Wang et al. 2004), over windows that lie inside."""
    x, y = _luma(a), _luma(b)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def _luma(pixels: Pixels) -> Tensor:
    """(H, W, 3) -> float64 (1, 1, H, W), BT.601."""
    return (torch.from_numpy(pixels.copy()).double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[
        None, None
    ]


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Pixels]]:
    """The report, and for a few prompts the pictures of all variants, a prompt a row."""
    silence_libraries()
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    tuning = parse_tuning(arguments.tuning)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator), tuning=tuning)  # as it is served
    is_random = spec.source.startswith("random:")
    rule: HitRule = ForcedHits(arguments.forced_period) if is_random else FirstBlockRule(arguments.threshold)
    twin = _float8(components, accelerator)
    scenes = held_out_scenes(arguments.prompts)
    variants = [EXACT, *(VARIANTS[name] for name in arguments.acceleration)]
    report: dict[str, Any] = {
        "benchmark": "quality",
        "model": spec.name,
        "dtype": str(components.dtype).removeprefix("torch."),
        "steps": arguments.steps,
        "prompts": arguments.prompts,
        "rule": repr(rule),
        "tuning": str(tuning),
        "hits": "forced" if is_random else "measured",
        "clock": "processor" if accelerator.kind == "cpu" else "real",
        "environment": environment(accelerator.name),
        "rows": [],
    }
    shown: list[list[Pixels]] = []
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split("x"))
        drawn: dict[str, list[Pixels]] = {}
        meters: dict[str, Meter] = {}
        for variant in variants:
            runner = FluxRunner(twin if variant.float8 else components, accelerator, tuning, print, hit_rule=rule)
            wanted = [
                GenerationParams(
                    spec.name, plain_caption(scene), width, height, arguments.steps, spec.default_guidance, seed,
                    max_sequence_length=spec.max_sequence_length,
                )
                for seed, scene in enumerate(scenes)
            ]  # fmt: skip
            meters[variant.name] = Meter()
            if accelerator.kind != "cpu":
                draw(runner, accelerator, wanted[:AT_ONCE], Meter(), variant.choice)  # warm up
            drawn[variant.name] = draw(runner, accelerator, wanted, meters[variant.name], variant.choice)
            asked = scenes if spec.name.startswith("flux-shapes") else []
            report["rows"].append(_row(variant, size, drawn, meters, asked))
        shown += [[pictures[index] for pictures in drawn.values()] for index in range(min(6, len(scenes)))]
    return report, [picture for row in shown for picture in row]


def _float8(components: FluxComponents, accelerator: Accelerator) -> FluxComponents:
    transformer = share(components.transformer)
    quantize(transformer, "fp8", accelerator)
    return replace(components, transformer=transformer)


def _row(
    variant: Variant, size: str, drawn: dict[str, list[Pixels]], meters: dict[str, Meter], scenes: Sequence[Scene]
) -> dict[str, Any]:
    pairs = list(zip(drawn[EXACT.name], drawn[variant.name], strict=True))
    meter, exact = meters[variant.name], meters[EXACT.name]
    decibels = [psnr(*pair) for pair in pairs]
    return {
        "variant": variant.name,
        "size": size,
        "psnr_db": None if math.inf in decibels else mean(decibels),
        "equal_pictures": decibels.count(math.inf),
        "ssim": mean(ssim(*pair) for pair in pairs),
        "hit_rate": meter.hits / meter.steps,
        "blocks": meter.blocks / meter.steps,
        "step_time": meter.seconds / exact.seconds,
        "scorer": rates(scenes, drawn[variant.name]) if scenes else {},
    }


def markdown(report: dict[str, Any]) -> str:
    """The table, and what a reader must know."""
    rows = [
        {
            "": f"{row['variant']}, {row['size']}",
            "PSNR dB": "exact" if row["variant"] == EXACT.name else _decibels(row),
            "SSIM": f"{row['ssim']:.4f}",
            "steps skipped": f"{row['hit_rate']:.0%}",
            "blocks run": f"{row['blocks']:.0%}",
            "step time": f"{row['step_time']:.2f}",
            **{f"{name} right": f"{value:.1f} %" for name, value in row["scorer"].items()},
        }
        for row in report["rows"]
    ]
    title = f"# Quality of acceleration: {report['model']}, {report['dtype']}, {report['environment']['device']}"
    notes = [
        f"- {report['prompts']} prompts, {report['steps']} steps; step time is {report['clock']} time to `none`'s."
    ]
    if report["hits"] == "forced":
        notes.append("- **Forced hit pattern, not quality**: the weights are random, so distances mean nothing.")
    return "\n".join([title, "", table(rows), "", *notes])


def _decibels(row: dict[str, Any]) -> str:
    return f"{row['equal_pictures']} equal" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tuning", default="", help="as `fluxserve serve` reads it")
    parser.add_argument("--acceleration", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sizes", nargs="+", default=["512x512"])
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--threshold", type=float, default=FirstBlockRule().threshold)
    parser.add_argument("--forced-period", type=int, default=2, help="random weights: compute every so many steps")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--sheet", type=Path, help="write a picture of some prompts here: a prompt a row, none first")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)  # pictures are decoded on a thread of their own, and its time is not the steps'
    with torch.no_grad():
        report, pictures = measure(arguments)
    print(markdown(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    if arguments.sheet:
        contact_sheet(pictures, columns=1 + len(arguments.acceleration), side=160).save(arguments.sheet, quality=85)
    emit(report)


if __name__ == "__main__":
    main()
