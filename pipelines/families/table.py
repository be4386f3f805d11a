"""The model families: how a checkpoint of each is loaded and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from models.accelerator import Accelerator
from models.auxiliaries import Find
from models.errors import LoadError
from models.loading import load
from models.registry import ModelSpec
from models.tuning import Tuning
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.runner import Runner
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.families.flux3.runner import Flux3Runner
from pipelines.families.sdxl.runner import SdxlRunner
from pipelines.ops.compute import Note


class Checkpoint(Protocol):
    """What the pool and the worker ask of a checkpoint's loaded parts, whatever its family."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The weights by part name."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def guidance_embeds(self) -> bool:
        """Whether it was distilled to take guidance as an input."""

    @property
    def load_s(self) -> float: ...

    @property
    def shared(self) -> frozenset[str]:
        """Names of the parts that another loaded checkpoint brought along."""


class CheckpointRunner(Runner, Protocol):
    """A runner that shows what it runs."""

    @property
    def components(self) -> Checkpoint: ...


class Run(Protocol):
    """Makes the runner of loaded parts. Args: adapters, find: what requests may name."""

    def __call__(
        self,
        components: Any,
        accelerator: Accelerator,
        tuning: Tuning,
        note: Note,
        *,
        adapters: AdapterCache,
        find: Find,
    ) -> CheckpointRunner: ...


@dataclass(frozen=True, slots=True)
class Family:
    """One model family.

    Args:
        load: a checkpoint's parts, a dataclass (`Checkpoint`); takes what `models.loading.load` takes, and raises
            LoadError.
        run: their runner.
        float8_part: name of the part that the pool may hold in float8, too; None where there is none.
        caches_steps: whether steps that would change little may be skipped.
        draws_coarse: whether first steps may be drawn on half the sides (`Coarse`).
    """

    load: Callable[..., Any]
    run: Run
    float8_part: str | None = None
    caches_steps: bool = False
    draws_coarse: bool = False


FAMILIES: dict[str, Family] = {
    "flux": Family(load, FluxRunner, float8_part="transformer", caches_steps=True, draws_coarse=True),
    "flux2": Family(load, Flux2Runner, float8_part="transformer"),
    "flux3": Family(load, Flux3Runner, float8_part="transformer"),
    "sdxl": Family(load, SdxlRunner),
}
"""By `ModelSpec.family`."""


def family_of(spec: ModelSpec) -> Family:
    """Raises: LoadError if there is no such family."""
    if spec.family not in FAMILIES:
        raise LoadError(f"model {spec.name} is of the family {spec.family}; known are {', '.join(FAMILIES)}.")
    return FAMILIES[spec.family]
