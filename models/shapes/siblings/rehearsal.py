"""An editor goes on drawing as its base does: without practice it forgets what its shapes look like.

An edit draws one new thing in a few tokens, and most edits none.
"""

import math
import random
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import MAX_GUIDANCE, Batch, noise_levels, velocity
from models.shapes.siblings.questions import AskedTraining
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
        return (
            rehearsed_loss(self.model, self.base, batch) if batch.reference is None else super().loss_of(batch, phase)
        )


def _drawn(draw: Draw, encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    if rng.random() < SHARE:
        return draw_scenes(encoders, rng, max(done, EVERYTHING_FROM), tokens)
    return draw(encoders, rng, done, tokens)


def rehearsed_loss(model: nn.Module, base: nn.Module, batch: Batch) -> Tensor:
    """How far a model's velocities are from its base's, at all guidance scales."""
    clean, sigma = batch.latents, noise_levels(batch)
    noisy = clean + sigma.view(-1, 1, 1) * (torch.randn_like(clean) - clean)
    guidance = torch.exp(torch.rand_like(sigma) * math.log(MAX_GUIDANCE))
    with torch.no_grad():
        target = velocity(base, noisy, sigma, batch, guidance).float()
    return batch.mean((velocity(model, noisy, sigma, batch, guidance).float() - target).square()).mean()
