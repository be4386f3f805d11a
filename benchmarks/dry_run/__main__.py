"""What a step of FLUX.1-dev at full size gives a GPU to do, counted without one, by configuration.

    python -m benchmarks.dry_run          (make counts)

The whole engine's step runs on the `meta` device, in a fraction of a second: every operation is counted with the bytes
that it reads and writes, Triton's kernels too, and everything that the host would have to wait for. The first step of a
pack makes what its next ones find made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from unittest import mock

import torch

from benchmarks.dry_run.counter import Tally, counting
from benchmarks.dry_run.null_device import NullAccelerator
from benchmarks.quality import ForcedHits
from models import float8, random_weights
from models.arguments import resolve
from models.components import FluxComponents
from models.fusion import fuse
from models.quantization import quantize
from models.tuning import AUTO
from pipelines.engine.request import Request, Row
from pipelines.families.flux1.runner import FluxRunner
from pipelines.ops import compute
from pipelines.protocol.params import GenerationParams
from server.bench.report import table

MODEL = "random:FLUX.1-dev"
STEPS = 50


@dataclass(frozen=True)
class Case:
    """One configuration. Args: sides: of the pack's square pictures. caches: whether they may skip steps."""

    name: str
    sides: tuple[int, ...]
    float8: bool = False
    caches: bool = False


CASES = (
    Case("1024²", (1024,)),
    Case("1024², float8", (1024,), float8=True),
    Case("4 x 512²", (512,) * 4),
    Case("1024² and 2 x 512²", (1024, 512, 512)),
    Case("1024² and 2 x 512², float8", (1024, 512, 512), float8=True),
    Case("1024², caching", (1024,), caches=True),
)


@dataclass(frozen=True)
class Counted:
    """Args: first: the step in which the pack is new. next: one like all that follow."""

    first: Tally
    next: Tally


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Take the ways of a GPU for tensors that only `meta` holds: Triton's kernels, and the device's float8 product."""
    kernels = import_module("pipelines.ops.kernels").TRITON
    quantize_rows = import_module("models.float8_kernel").quantize_rows
    with (
        mock.patch.object(compute, "checked_triton", return_value=kernels),
        mock.patch.object(float8, "quantize_rows", quantize_rows),
        mock.patch.object(float8, "_emulated", float8._kernel),
    ):
        yield


@cache
def components(in_float8: bool) -> FluxComponents:
    """FLUX.1-dev as a GPU serves it, without a value in it."""
    accelerator, spec = NullAccelerator(), resolve(MODEL)
    with (
        mock.patch.object(random_weights, "_randomise"),
        mock.patch.object(torch, "Generator", partial(_host_generator, torch.Generator)),
    ):
        made = random_weights.random_components(spec, accelerator.device, torch.bfloat16, lambda *progress: None)
    fuse(made.transformer, qkv=True, mlp=True)
    for module in made.modules.values():
        module.requires_grad_(False)
    if in_float8:
        quantize(made.transformer, "fp8", accelerator)
    return made


def _host_generator(kind: Callable[[], torch.Generator], *device: object) -> torch.Generator:
    return kind()


def counted(case: Case) -> Counted:
    """Two steps of the pack."""
    accelerator = NullAccelerator()
    tuning = replace(AUTO.resolved(accelerator.kind), attention="grouped", replay=False)
    parts = components(case.float8)
    with as_on_a_gpu():
        runner = FluxRunner(parts, accelerator, tuning, hit_rule=ForcedHits())
        rows = [_admitted(runner, side, index, case.caches) for index, side in enumerate(case.sides)]
        first = _step(runner, rows)
        return Counted(first, _step(runner, rows))


def _admitted(runner: FluxRunner, side: int, seed: int, caches: bool) -> Row:
    """A row in the middle of its steps."""
    params = GenerationParams(MODEL, "a red circle", side, side, STEPS, 3.5, seed)
    request = Request("count", 0, params, MODEL, 0, 0.0, caches_steps=caches)
    admission = runner.admit(request).result()
    request.conditioning = admission.conditioning
    (row,) = request.rows
    row.latents, row.state = admission.latents[0], admission.states[0]
    row.steps_left = STEPS // 2
    return row


def _step(runner: FluxRunner, rows: Sequence[Row]) -> Tally:
    with counting() as tally:
        runner.denoise(rows)
    return tally


def report() -> str:
    """The table; of waits, the first step's and the next ones'."""
    return table([_row(case, counted(case)) for case in CASES])


def _row(case: Case, steps: Counted) -> dict[str, str]:
    tally = steps.next
    attention = sum(count for name, count in tally.launches.items() if "attention" in name)
    return {
        "a step of": case.name,
        "launches": str(tally.total),
        "matrix products": str(tally.products),
        "attention": str(attention),
        "others": str(tally.total - tally.products - attention),
        "TFLOP in products": f"{tally.flop / 1e12:.1f}",
        "GB moved by others": f"{tally.gigabytes:.1f}",
        "waits; in a pack's first step": f"{len(tally.waits)}; {len(steps.first.waits)}",
    }


def main() -> None:
    torch.set_grad_enabled(False)
    print(report())


if __name__ == "__main__":
    main()
