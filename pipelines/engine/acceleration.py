"""What a request's `acceleration` means on one worker: which weights draw it, and whether its steps may be skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.protocol.params import ACCELERATIONS, GenerationParams

FLOAT8 = "+float8"
"""Marks the group of requests that a model's float8 weights draw."""


@dataclass(frozen=True, slots=True)
class AccelerationChoice:
    """How one request is drawn.

    Args:
        group: the weights; rows of different groups never share a step.
        caches_steps: whether its rows may skip most of a step that would change little.
        how: the same in words, after "drawn".
        note: one sentence for the request's log if it gets less than it asked for.
    """

    group: str
    caches_steps: bool = False
    how: str = "exactly"
    note: str | None = None


ChooseAcceleration = Callable[[GenerationParams], AccelerationChoice]


def choose_acceleration(params: GenerationParams, most: str = "high", has_float8: bool = False) -> AccelerationChoice:
    """What a request gets of the level that it asked for.

    Where that is less, it is drawn with what there is, exactly in the worst case, and `note` says so.

    Args: most: the highest level this worker gives. has_float8: whether it holds float8 weights of the model.
    """
    wanted, model = params.acceleration, params.model
    level = min(wanted, most, key=ACCELERATIONS.index)
    takes_float8, caches_steps = has_float8 and level != "none", level == "high"
    means = ["float8 weights"] * takes_float8 + ["step caching"] * caches_steps
    how = f"with {' and '.join(means)}" if means else "exactly"
    is_less = level != wanted or (level != "none" and not takes_float8)
    note = f"acceleration {wanted} is not fully available on this worker: drawn {how}" if is_less else None
    return AccelerationChoice(model + FLOAT8 if takes_float8 else model, caches_steps, how, note)
