"""What a request's `acceleration` means on one worker: which weights draw it, and whether its steps may be reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.params import ACCELERATIONS, GenerationParams

FLOAT8 = "+float8"
"""Marks the group of requests that a model's float8 weights draw."""


@dataclass(frozen=True, slots=True)
class Grant:
    """How one request is drawn.

    Args:
        group: the weights; rows of different groups never share a step.
        caches_steps: whether its rows carry a step cache (pipelines.step_cache).
        note: one sentence for the request's log if it gets less than it asked for.
    """

    group: str
    caches_steps: bool = False
    note: str | None = None


Granting = Callable[[GenerationParams], Grant]


def grant(params: GenerationParams, most: str = "high", has_float8: bool = False) -> Grant:
    """`most`: the highest level this worker gives; `has_float8`: whether it holds the model's float8 weights.

    Whoever asks for more is served with what there is, exactly in the worst case, and told so.
    """
    wanted, model = params.acceleration, params.model
    is_capped = ACCELERATIONS.index(wanted) > ACCELERATIONS.index(most)
    level = most if is_capped else wanted
    group = model + FLOAT8 if has_float8 and level != "none" else model
    caches_steps = level == "high"
    if not is_capped and (has_float8 or level == "none"):
        return Grant(group, caches_steps)
    how = " and ".join((["float8 weights"] if group != model else []) + (["step caching"] if caches_steps else []))
    given = f"drawn with {how} only" if how else "drawn exactly"
    return Grant(group, caches_steps, f"acceleration {wanted} is not available on this worker: {given}")
