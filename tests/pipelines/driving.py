"""Running an engine by hand: submit, step until quiet, collect the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from models.accelerator import CpuAccelerator
from models.registry import TINY
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.runner import Runner
from pipelines.protocol.frames import Frame, Picture, Submit
from pipelines.protocol.params import GenerationParams


def make_params(**changes: object) -> GenerationParams:
    """A small, fast request; every field may be changed."""
    values: dict[str, object] = {
        "model": TINY.name,
        "prompt": "a red circle",
        "width": 48,
        "height": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "seed": 7,
    }
    return GenerationParams(**(values | changes))  # type: ignore[arg-type]


def make_engine(runner: Runner, config: EngineConfig | None = None, **kwargs: object) -> Engine:
    def runner_for(name: str) -> Runner:
        return {TINY.name: runner}[name]

    return Engine(runner_for, CpuAccelerator(), config, **kwargs)  # type: ignore[arg-type]


def submit(engine: Engine, job_id: str, params: GenerationParams, **kwargs: object) -> None:
    engine.add_request(Submit(job_id, 1, params.to_dict(), **kwargs))  # type: ignore[arg-type]


def drain(engine: Engine, between: Callable[[int], None] = lambda step: None, max_steps: int = 10_000) -> list[Frame]:
    """Step until nothing is left; `between` is called with the count of calls before each."""
    frames: list[Frame] = []
    for step in range(max_steps):
        between(step)
        if not engine.has_work:
            return frames
        frames += engine.step()
    raise AssertionError(f"the engine is still busy after {max_steps} steps")


def pictures(frames: Iterable[Frame], job_id: str) -> list[NDArray[np.uint8]]:
    """The pictures of one job in the order of their index."""
    found = sorted((f for f in frames if isinstance(f, Picture) and f.job_id == job_id), key=lambda f: f.index)
    return [np.frombuffer(f.pixels, np.uint8).reshape(f.height, f.width, 3) for f in found]


def of(frames: Iterable[Frame], job_id: str, kind: type) -> list[Frame]:
    return [frame for frame in frames if isinstance(frame, kind) and getattr(frame, "job_id", None) == job_id]
