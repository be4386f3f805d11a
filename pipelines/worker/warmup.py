"""Small real requests before the worker says that it is ready: kernels are chosen and compiled, step times learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from models.errors import LoadError
from models.registry import ModelSpec
from pipelines.engine.engine import Engine
from pipelines.engine.runner import Limits
from pipelines.protocol.conditions import Condition, Control, Fill, InputPicture
from pipelines.protocol.frames import Failed, Submit
from pipelines.protocol.params import GenerationParams

Mode = Literal["auto", "none", "full"]
Size = tuple[int, int]
"""(width, height) in pixels."""

_JOB = "warm-up"


def sizes_to_warm(mode: Mode, kind: str, limits: Limits, presets: Sequence[Size]) -> tuple[Size, ...]:
    """The pictures to draw before a model is ready, each once.

    `full` is every preset that the model can draw. `auto` is the same on an accelerator; on a CPU, which compiles
    nothing, it is the smallest picture, to show that the model draws at all. `none` draws nothing.
    """
    if mode == "none":
        return ()
    if mode == "auto" and kind == "cpu":
        return ((limits.size_multiple, limits.size_multiple),)
    return tuple(size for size in dict.fromkeys(presets) if size[0] * size[1] <= limits.max_pixels)


def warm_up(
    engines: Sequence[Engine],
    spec: ModelSpec,
    sizes: Sequence[Size],
    progress: Callable[[int, int], None],
    levels: Sequence[str] = ("none",),
) -> list[str]:
    """Draw every size in one step, alone, on each engine in turn: text encoders, transformer, VAE, safety checker.

    The first steps of a size include compilation. Give an engine that is thrown away, then the one that will serve: its
    cost model then learns from compiled steps only.

    Args:
        progress: called with how many are done of how many, before each and at the end.
        levels: of acceleration, one for each set of weights: each needs kernels of its own.
    Returns: a sentence for each size that could not be drawn. Raises: LoadError if none could.
    """
    failures: dict[tuple[Size, str], Failed] = {}
    plan = [(size, level) for level in levels for size in sizes]
    total = len(engines) * len(plan)
    for round_, engine in enumerate(engines):
        for index, (size, level) in enumerate(plan):
            progress(round_ * len(plan) + index, total)
            if (size, level) not in failures and (failed := _draw(engine, spec, size, level)):
                failures[size, level] = failed
    progress(total, total)
    if plan and len(failures) == len(plan):
        raise LoadError(f"model {spec.name} cannot draw on this device: {_advice(list(failures.values()))}.")
    return [f"{spec.name}, {size[0]} x {size[1]}: {failed.message}" for (size, _), failed in failures.items()]


def _draw(engine: Engine, spec: ModelSpec, size: Size, level: str) -> Failed | None:
    params = GenerationParams(
        model=spec.name,
        prompt="",
        width=size[0],
        height=size[1],
        num_inference_steps=1,
        guidance_scale=spec.default_guidance,
        seed=0,
        max_sequence_length=spec.max_sequence_length,
        safety_threshold=1.0,
        acceleration=level,
        conditions=_needed(spec),
    )
    black = InputPicture(*size, 1, bytes(size[0] * size[1])).to_dict()
    engine.add_request(Submit(_JOB, 0, params.to_dict(), pictures=[black] * params.num_pictures))
    failed = None
    while engine.has_work:
        failed = next((frame for frame in engine.step() if isinstance(frame, Failed)), failed)
    return failed


def _needed(spec: ModelSpec) -> tuple[Condition, ...]:
    """What this model does not draw without, over a black picture and mask."""
    if spec.variant == "fill":
        return (Fill(0, 1),)
    if spec.variant == "canny" or spec.variant == "depth":
        return (Control(spec.variant, 0, is_prepared=True),)
    return ()


def _advice(failures: Sequence[Failed]) -> str:
    if all(failed.kind == "out_of_memory" for failed in failures):
        return "no picture fits into its memory; `fluxserve doctor` says how --quantization and --offload make it fit"
    return next(failed.message for failed in failures if failed.kind != "out_of_memory")
