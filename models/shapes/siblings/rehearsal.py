"""An editor goes on drawing as its base does: without practice it forgets what its shapes look like.

An edit draws one new thing in a few tokens, and most edits none. Steps that workers feed (`fast`) are all edits.
"""

import math
import random
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import MAX_GUIDANCE, Batch
from models.shapes.siblings.questions import AskedTraining
from models.shapes.teaching import taught_loss
from models.shapes.text import Encoders
from models.shapes.train_flow import Draw, draw_scenes

SHARE = 0.35  # of the steps
EVERYTHING_FROM = 0.45  # where in the curriculum all kinds of scenes are drawn


class EditTraining(AskedTraining):
    """The run of a sibling that is shown a picture, and in some steps none. Args: base: what it started from."""

    def __init__(self, encoders: Encoders, *, base: nn.Module, draw: Draw, device: torch.device, **others: Any) -> None:
        super().__init__(encoders, draw=partial(_drawn, draw), device=device, **others)
        self.base = base.to(device).eval().requires_grad_(False)
        make_lean(self.base)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch in a phase, under autocast."""
        if batch.reference is not None:
            return super().loss_of(batch, phase)
        scale = torch.exp(torch.rand(len(batch.latents), device=self.device) * math.log(MAX_GUIDANCE))
        return taught_loss(self.model, self.base, batch, batch, scale, own=scale)


def _drawn(draw: Draw, encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    if rng.random() < SHARE:
        return draw_scenes(encoders, rng, max(done, EVERYTHING_FROM), tokens)
    return draw(encoders, rng, done, tokens)
