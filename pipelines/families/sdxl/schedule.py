"""A row's place in the schedule: a scheduler of diffusers that no other row counts in, multistep memory included."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from models.sdxl.components import SdxlComponents


def started(components: SdxlComponents, num_steps: int, kept: int) -> Any:
    """A scheduler before the first of the last `kept` of `num_steps` steps."""
    scheduler = components.new_scheduler()
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(num_steps - kept)
    return scheduler


def advanced(scheduler: Any, predicted: Tensor, timestep: Tensor, latents: Tensor) -> tuple[Any, Tensor, Tensor]:
    """One step: the scheduler after it, the latents, and the picture that the model expects in the end.

    The given scheduler stays as it was, so that a step that fails may be tried again.
    """
    after = copy.copy(scheduler)
    if hasattr(after, "model_outputs"):
        after.model_outputs = list(after.model_outputs)
    stepped = after.step(predicted, timestep, latents)
    latents = stepped.prev_sample.to(predicted.dtype)
    expected = after.model_outputs[-1] if hasattr(after, "model_outputs") else stepped.pred_original_sample
    return after, latents, expected
