"""A second model family of three lines of arithmetic: proof that engine, pool and worker know none in particular.

A prompt names a colour; each step takes the noise an equal part of the way to it; decoding paints the picture with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.accelerator import Accelerator, Launched
from models.auxiliaries import Find
from models.registry import ModelSpec
from models.tuning import Tuning
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.request import Admission, Request, RequestError, Row
from pipelines.engine.runner import Decoded
from pipelines.families.table import Family
from pipelines.ops.compute import Note
from pipelines.protocol.params import GenerationParams
from tests.pipelines.doubles import Ready

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

SPEC = ModelSpec(name="flat", source="flat:colours", family="flat", max_pixels=256 * 256)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FlatConditioning:
    colour: Tensor


@dataclass
class FlatState:
    """The last step's change, for previews."""

    change: Tensor


@dataclass(frozen=True)
class FlatLimits:
    size_multiple: int = 1
    max_pixels: int = SPEC.max_pixels

    def check(self, params: GenerationParams) -> None:
        if params.width * params.height > self.max_pixels:
            raise RequestError("that is too large for a flat picture")

    def tokens(self, params: GenerationParams) -> int:
        return 1

    def note(self, params: GenerationParams) -> None:
        return None

    def alike(self, params: GenerationParams) -> None:
        pass


@dataclass(frozen=True)
class FlatComponents:
    spec: ModelSpec
    palette: nn.Module
    dtype: torch.dtype = torch.float32
    guidance_embeds: bool = False
    load_s: float = 0.0
    shared: frozenset[str] = frozenset()

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"palette": self.palette}


class FlatRunner:
    """Draws flat colours; `steps` records which jobs stepped together."""

    limits = FlatLimits()
    has_safety_checker = False

    def __init__(
        self,
        components: FlatComponents,
        accelerator: Accelerator,
        tuning: Tuning,
        note: Note,
        adapters: AdapterCache,
        find: Find,
    ) -> None:
        self.components = components
        self.steps: list[tuple[str, ...]] = []
        self._accelerator = accelerator

    def admit(self, request: Request) -> Launched[Admission]:
        def work() -> Admission:
            if request.params.prompt not in COLOURS:
                raise RequestError(f"no colour is called {request.params.prompt}")
            generators = [torch.Generator().manual_seed(seed) for seed in request.params.seeds]
            noise = tuple(torch.rand(3, generator=generator) for generator in generators)
            return Admission(FlatConditioning(torch.tensor(COLOURS[request.params.prompt])), noise)

        return Ready(work)

    def denoise(self, rows: Sequence[Row]) -> None:
        self.steps.append(tuple(row.request.job_id for row in rows))
        for row in rows:
            conditioning, latents = row.request.conditioning, row.latents
            assert isinstance(conditioning, FlatConditioning)
            assert latents is not None
            row.state = FlatState((conditioning.colour - latents) / row.steps_left)
            row.latents = latents + row.state.change

    def decode(self, row: Row) -> Launched[Decoded]:
        latents, params = row.latents, row.request.params
        assert latents is not None
        pixels = (latents * 255).round().to(torch.uint8).expand(params.height, params.width, 3).contiguous()
        return self._accelerator.launch("vae", lambda: Decoded(pixels, torch.isfinite(latents).all()))

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        raise AssertionError("there is no safety checker")

    def preview(self, row: Row) -> NDArray[np.uint8]:
        assert isinstance(row.state, FlatState)
        assert row.latents is not None
        expected = row.latents + row.state.change * row.steps_left
        return (expected * 255).round().to(torch.uint8)[None, None].numpy()


def load(spec: ModelSpec, *args: object, **options: object) -> FlatComponents:
    """Takes what `models.loading.load` takes."""
    return FlatComponents(spec, nn.Linear(3, 3))


FLAT = Family(load, FlatRunner)
