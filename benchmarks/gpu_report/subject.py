"""What the parts of a report measure: a device and the models on it, made when a part first needs them."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import time_ns
from typing import Any

from benchmarks.engine.load import Job
from benchmarks.engine.systems import Ours, Source
from benchmarks.gpu_report.power import Power
from models.accelerator import Accelerator, open_accelerator
from models.arguments import resolve
from models.components import FluxComponents
from models.float8 import share
from models.loading import load
from models.quantization import quantize
from models.registry import ModelSpec
from models.tuning import AUTO, PLAIN, Tuning
from pipelines.engine.request import Request, Row
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True)
class Options:
    """What was asked for. Args: size: side of the large picture in pixels. only: parts by name; empty is all."""

    out: Path
    device: str = "auto"
    model: str = "random:FLUX.1-dev"
    size: int = 1024
    steps: int = 28
    budget_s: float = 600.0
    only: tuple[str, ...] = ()


class Subject:
    """One device and one model in its several forms. Attributes: notes: what was chosen while they were loaded."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.notes: list[str] = []

    @cached_property
    def accelerator(self) -> Accelerator:
        return open_accelerator(self.options.device)

    @cached_property
    def power(self) -> Power:
        return Power(is_there=self.on_gpu)

    @property
    def on_gpu(self) -> bool:
        return self.accelerator.kind == "cuda"

    @cached_property
    def spec(self) -> ModelSpec:
        return resolve(self.options.model)

    @cached_property
    def exact(self) -> FluxComponents:
        """In the device's own precision, as it is served."""
        components: FluxComponents = load(self.spec, self.accelerator, tuning=AUTO)
        return components

    @cached_property
    def plain(self) -> FluxComponents:
        """As diffusers itself can draw with it."""
        return load(self.spec, self.accelerator, tuning=PLAIN) if self.served != PLAIN else self.exact

    @cached_property
    def float8(self) -> FluxComponents:
        return self.in_float8(self.exact)

    @cached_property
    def runner(self) -> FluxRunner:
        return FluxRunner(self.exact, self.accelerator, AUTO, self.notes.append)

    @property
    def served(self) -> Tuning:
        """Every switch as this device has it."""
        return AUTO.resolved(self.accelerator.kind)

    def as_served(self) -> None:
        """Put back what holds for the whole process."""
        self.accelerator.allow_split_k(self.served.split_k is not False)

    def in_float8(self, components: FluxComponents) -> FluxComponents:
        """With float8 weights in the blocks; the rest is shared."""
        transformer = share(components.transformer)
        quantize(transformer, "fp8", self.accelerator)
        return replace(components, transformer=transformer)

    def forget(self, *names: str) -> None:
        """Give the memory of these forms back."""
        for name in names:
            self.__dict__.pop(name, None)
        gc.collect()
        self.accelerator.release_cached_memory()

    def params(self, side: int, steps: int, seed: int = 0, **more: Any) -> GenerationParams:
        """A square picture of a prompt that no cache knows."""
        prompt, guidance = f"a red circle, number {time_ns()}", self.spec.default_guidance
        length = min(self.spec.max_sequence_length, 512)
        return GenerationParams(
            self.spec.name, prompt, side, side, steps, guidance, seed, max_sequence_length=length, **more
        )

    def latencies(self, runner: FluxRunner, side: int, steps: int, count: int, **more: Any) -> list[float]:
        """Seconds of one request after another."""
        jobs = [Job(self.params(side, steps, 1000 + index, **more)) for index in range(count)]
        outcome = Ours(runner, self.accelerator).run(Source(jobs, 1))
        return [round(job.latency, 4) for job in outcome.jobs]

    def admitted(self, runner: FluxRunner, side: int, seed: int = 0) -> Row:
        """A row before its first step, of a request that the engine does not know."""
        params = self.params(side, 50, seed)
        request = Request("report", 0, params, params.model, 0, 0.0)
        admission = runner.admit(request).result()
        request.conditioning = admission.conditioning
        (row,) = request.rows
        row.latents = admission.latents[0]
        row.state = admission.states[0] if admission.states else row.state
        return row

    def sides(self) -> tuple[int, int]:
        """The large picture's and the small one's."""
        return self.options.size, self.options.size // 2

    def packs(self) -> dict[str, tuple[int, ...]]:
        """Steps worth measuring, as the sides of their pictures."""
        big, small = self.sides()
        return {"lone": (big,), "4 small": (small,) * 4, "mixed": (big, small, small)}
