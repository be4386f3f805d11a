"""How a checkpoint of each model family is opened, put together and made of random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.checkpoint import KINDS, SAFETY, Checkpoint, open_checkpoint
from models.components import FluxComponents, SafetyModel
from models.errors import LoadError
from models.flux2.checkpoint import PARTS, Flux2Checkpoint, open_flux2
from models.flux2.components import Flux2Components
from models.flux2.random_weights import random_flux2
from models.flux3.checkpoint import PARTS as FLUX3_PARTS
from models.flux3.checkpoint import Flux3Checkpoint, open_flux3
from models.flux3.components import Flux3Components
from models.flux3.random_weights import random_flux3
from models.fusion import fuse, fuse_flux2, fuse_flux3
from models.part import Part
from models.random_weights import random_components
from models.registry import Family, ModelSpec
from models.sdxl.checkpoint import KINDS as SDXL_KINDS
from models.sdxl.checkpoint import SdxlCheckpoint, open_sdxl
from models.sdxl.components import SdxlComponents
from models.sdxl.random_weights import random_sdxl

LoadPart = Callable[[str], Any]
"""From a part's name to its module, where it belongs."""


class Opened(Protocol):
    """A checkpoint that was looked at, not read."""

    @property
    def name(self) -> str: ...

    @property
    def parts(self) -> Mapping[str, Part]: ...

    @property
    def image_processor(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """One family.

    Args:
        open: looks at a checkpoint's files. Raises LoadError.
        assemble: its components, from what `open` gave and a way to load each part.
        random: components with random weights: (spec, device, dtype, progress, offload). Raises LoadError.
        fuse: joins a transformer's projections in place: (transformer, qkv, mlp).
        core: name of the part that every step runs.
        streams: whether its blocks may wait on the host.
    """

    open: Callable[[ModelSpec], Opened]
    assemble: Callable[[ModelSpec, Any, LoadPart], Any]
    random: Callable[..., Any]
    fuse: Callable[[Any, bool, bool], None]
    core: str = "transformer"
    streams: bool = True


def _flux1(spec: ModelSpec, checkpoint: Checkpoint, load: LoadPart) -> FluxComponents:
    return FluxComponents(
        spec=spec,
        **{name: load(name) for name in KINDS},
        tokenizer=checkpoint.tokenizer,
        tokenizer_2=checkpoint.tokenizer_2,
        sigma_config=checkpoint.sigma_config,
        safety=_safety(checkpoint, load),
    )


def _flux2(spec: ModelSpec, checkpoint: Flux2Checkpoint, load: LoadPart) -> Flux2Components:
    return Flux2Components(
        spec=spec,
        **{name: load(name) for name in PARTS},
        tokenizer=checkpoint.tokenizer,
        sigma_config=checkpoint.sigma_config,
        is_distilled=checkpoint.is_distilled,
        passes_references_once=checkpoint.passes_references_once,
        reading=checkpoint.reading,
        safety=_safety(checkpoint, load),
    )


def _flux3(spec: ModelSpec, checkpoint: Flux3Checkpoint, load: LoadPart) -> Flux3Components:
    return Flux3Components(
        spec=spec,
        **{name: load(name) for name in FLUX3_PARTS},
        tokenizer=checkpoint.tokenizer,
        sigma_config=checkpoint.sigma_config,
        safety=_safety(checkpoint, load),
    )


def _sdxl(spec: ModelSpec, checkpoint: SdxlCheckpoint, load: LoadPart) -> SdxlComponents:
    return SdxlComponents(
        spec=spec,
        **{name: load(name) for name in SDXL_KINDS},
        tokenizer=checkpoint.tokenizer,
        tokenizer_2=checkpoint.tokenizer_2,
        scheduler_config=checkpoint.scheduler_config,
        empty_is_zero=checkpoint.empty_is_zero,
        safety=_safety(checkpoint, load),
    )


def _leave(core: Any, qkv: bool, mlp: bool) -> None:
    """A UNet runs as diffusers has it."""


def _safety(checkpoint: Opened, load: LoadPart) -> SafetyModel | None:
    return SafetyModel(load(SAFETY), checkpoint.image_processor) if SAFETY in checkpoint.parts else None


RECIPES: dict[Family, Recipe] = {
    "flux": Recipe(open_checkpoint, _flux1, random_components, fuse),
    "flux2": Recipe(open_flux2, _flux2, random_flux2, fuse_flux2),
    "flux3": Recipe(open_flux3, _flux3, random_flux3, fuse_flux3),
    "sdxl": Recipe(open_sdxl, _sdxl, random_sdxl, _leave, core="unet", streams=False),
}


def recipe_of(spec: ModelSpec) -> Recipe:
    """Raises: LoadError if there is no such family."""
    if spec.family not in RECIPES:
        raise LoadError(f"model {spec.name} is of the family {spec.family}; known are {', '.join(RECIPES)}.")
    return RECIPES[spec.family]
