"""One request on this machine without a server: the same engine, stepped by the caller's thread until it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.accelerator import open_accelerator, pick_dtype
from models.loading import silence_libraries
from models.memory import Offload
from models.registry import ModelSpec
from models.tuning import parse_tuning
from pipelines.adapters.cache import ADAPTER_BYTES, AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.frames import Failed, Finished, Frame, Loading, Picture, Submit
from pipelines.protocol.params import GenerationParams


class GenerationError(Exception):
    """The request ended without pictures; the message is the engine's sentence."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Pictures in order, and where the time went, in seconds (see `protocol.Finished`)."""

    pictures: tuple[Picture, ...]
    timings: dict[str, float]
    device: str
    has_safety_checker: bool


@torch.no_grad()
def generate(
    spec: ModelSpec,
    params: GenerationParams,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "none",
    on_frame: Callable[[Frame], None] = lambda frame: None,
    offload: Offload = "none",
    tuning: str = "",
    adapters: Path | None = None,
) -> Generated:
    """Load the model, draw the pictures, return them. `on_frame` sees loading and every step.

    Args: adapters: the folder of those that the request names.

    Raises: GenerationError; models.checkpoint_files.LoadError; models.accelerator.DeviceError; ValueError.
    """
    silence_libraries()
    accelerator = open_accelerator(device)

    def loading(model: str, stage: str, fraction: float) -> None:
        on_frame(Loading(model, stage, fraction))

    pool = ModelPool(
        [spec],
        accelerator,
        pick_dtype(dtype, accelerator),
        quantization,
        None,
        loading,
        offload=offload,
        tuning=parse_tuning(tuning),
        adapters=AdapterCache(adapters, ADAPTER_BYTES),
    )
    runner = pool.runner(spec.name)
    if params.acceleration != "none":
        pool.hold_float8()
    engine = Engine(pool.runner, accelerator, choose_acceleration=pool.choose_acceleration)
    engine.add_request(Submit("generate", 1, params.to_dict()))
    pictures: list[Picture] = []
    while True:
        for frame in engine.step():
            on_frame(frame)
            if isinstance(frame, Picture):
                pictures.append(frame)
            elif isinstance(frame, Failed):
                raise GenerationError(frame.message)
            elif isinstance(frame, Finished):
                pictures.sort(key=lambda picture: picture.index)
                return Generated(tuple(pictures), frame.timings, accelerator.name, runner.has_safety_checker)
