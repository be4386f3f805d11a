"""What a request's `acceleration` means on one worker: which weights draw it, and what its steps may leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.protocol.params import ACCELERATIONS, GenerationParams

FLOAT8 = "+float8"
"""Marks the group of requests that a model's float8 weights draw."""

_COARSE_FROM = 0.4
"""Share of the size that a model draws best from which the first steps may be coarse: half the sides of less are small
for what it was trained on."""

_COARSE_STEPS = 8
"""Of fewer, each is too long to leave detail out."""


@dataclass(frozen=True, slots=True)
class AccelerationChoice:
    """How one request is drawn.

    Args:
        group: the weights; rows of different groups never share a step.
        caches_steps: whether its rows may skip most of a step that would change little.
        is_coarse: whether its first steps are drawn on half the sides.
        how: the same in words, after "drawn".
        note: one sentence for the request's log if it gets less than it asked for.
    """

    group: str
    caches_steps: bool = False
    is_coarse: bool = False
    how: str = "exactly"
    note: str | None = None


ChooseAcceleration = Callable[[GenerationParams], AccelerationChoice]


def choose_acceleration(
    params: GenerationParams, most: str = ACCELERATIONS[-1], has_float8: bool = False, can_be_coarse: bool = False
) -> AccelerationChoice:
    """What a request gets of the level that it asked for.

    Where that is less, it is drawn with what there is, exactly in the worst case, and `note` says so.

    Args:
        most: the highest level this worker gives.
        has_float8: whether it holds float8 weights of the model.
        can_be_coarse: whether the first steps of such a picture may be.
    """
    wanted, model = params.acceleration, params.model
    level = min(wanted, most, key=ACCELERATIONS.index)
    takes_float8, caches_steps = has_float8 and level != "none", level in ("high", "max")
    is_coarse = can_be_coarse and level == "max"
    means = ["float8 weights"] * takes_float8 + ["step caching"] * caches_steps + ["coarse first steps"] * is_coarse
    how = f"with {_listed(means)}" if means else "exactly"
    is_less = level != wanted or (level != "none" and not takes_float8) or (level == "max" and not is_coarse)
    note = f"acceleration {wanted} is not fully available on this worker: drawn {how}" if is_less else None
    return AccelerationChoice(model + FLOAT8 if takes_float8 else model, caches_steps, is_coarse, how, note)


def may_be_coarse(params: GenerationParams, native_pixels: int) -> bool:
    """Whether a prompt alone tells what to draw, in steps enough and at sides of which the halves can be drawn, too.

    Args: native_pixels: width x height that the model draws best.
    """
    is_large = params.width * params.height >= _COARSE_FROM * native_pixels
    return is_large and not params.conditions and params.num_inference_steps >= _COARSE_STEPS


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
