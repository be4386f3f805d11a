"""Models that serve requests which another checkpoint draws: Redux priors, ControlNets, depth estimators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel
from diffusers.pipelines.flux import ReduxImageEncoder
from torch import nn
from transformers import AutoModelForDepthEstimation, SiglipVisionModel

from models.accelerator import Accelerator
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import part_in
from models.part import image_processor, open_part
from models.placement import place
from models.registry import ModelSpec


@dataclass(frozen=True)
class ReduxPrior:
    """Turns a picture into tokens that stand behind the prompt's (FluxPriorReduxPipeline)."""

    spec: ModelSpec
    image_encoder: Any
    image_embedder: Any
    image_processor: Any

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The weights by part name."""
        return {"image_encoder": self.image_encoder, "image_embedder": self.image_embedder}


@dataclass(frozen=True)
class ControlNet:
    """A second network whose results are added to the transformer's, block by block."""

    spec: ModelSpec
    net: FluxControlNetModel

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The weights by part name."""
        return {"controlnet": self.net}


@dataclass(frozen=True)
class DepthEstimator:
    """Tells how near every pixel of a picture is."""

    spec: ModelSpec
    model: Any
    image_processor: Any

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The weights by part name."""
        return {"depth_estimator": self.model}


Auxiliary = ReduxPrior | ControlNet | DepthEstimator

Find = Callable[[str], Auxiliary]
"""The auxiliary model of a name, or of a variant where any will do; may load it. Raises: KeyError."""


def no_auxiliaries(name: str) -> Auxiliary:
    """For whoever has none."""
    raise KeyError(name)


_PARTS: dict[str, dict[str, Any]] = {
    "redux": {"image_encoder": SiglipVisionModel, "image_embedder": ReduxImageEncoder},
    "controlnet": {"": FluxControlNetModel},
    "depth-estimator": {"": AutoModelForDepthEstimation},
}
"""Folders of weights by variant; "" is the checkpoint's own."""
_PROCESSORS = {"redux": "feature_extractor", "depth-estimator": ""}


def check_auxiliary(spec: ModelSpec) -> None:
    """What loading checks before it reads weights. Raises: LoadError."""
    folder = locate(spec)
    for name, kind in _PARTS[spec.variant].items():
        with _without_notices():
            open_part(part_in(folder, name), kind).check()
    if spec.variant in _PROCESSORS:
        image_processor(part_in(folder, _PROCESSORS[spec.variant]))


def load_auxiliary(spec: ModelSpec, accelerator: Accelerator, dtype: torch.dtype | None = None) -> Auxiliary:
    """Load one onto the device. Raises: LoadError with one sentence that says what to do."""
    load = _Loader(locate(spec), accelerator, dtype or accelerator.default_dtype)
    if spec.variant == "redux":
        processor = image_processor(part_in(load.folder, "feature_extractor"))
        encoder = load.part("image_encoder", SiglipVisionModel)
        auxiliary: Auxiliary = ReduxPrior(spec, encoder, load.part("image_embedder", ReduxImageEncoder), processor)
    elif spec.variant == "controlnet":
        auxiliary = ControlNet(spec, _checked(spec, load.part("", FluxControlNetModel)))
    elif spec.variant == "depth-estimator":
        processor = image_processor(load.folder)
        auxiliary = DepthEstimator(spec, load.part("", AutoModelForDepthEstimation), processor)
    else:
        raise LoadError(f"model {spec.name} is of the kind {spec.variant}, which helps no other model.")
    accelerator.mark().wait()  # it runs on another stream, which does not wait for this one
    return auxiliary


@dataclass(frozen=True)
class _Loader:
    folder: Path
    accelerator: Accelerator
    dtype: torch.dtype

    def part(self, name: str, kind: Any) -> Any:
        """The module in one folder of the checkpoint."""
        part = open_part(part_in(self.folder, name), kind)
        with _without_notices():
            part.check()
            module = part.load(self.dtype, self.accelerator.device.type == "cpu")
        return place(name, module, self.accelerator.device, "none")


@contextmanager
def _without_notices() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' ControlNet imports what diffusers has moved
        yield


def _checked(spec: ModelSpec, net: FluxControlNetModel) -> FluxControlNetModel:
    """Raises: LoadError for a kind of ControlNet that the engine does not run."""
    if net.union or net.input_hint_block is not None:
        kind = "a union of several ControlNets" if net.union else "one that sees pixels instead of latents"
        raise LoadError(f"model {spec.name} is {kind}, which is not served; use a FluxControlNetModel for one control.")
    return net
