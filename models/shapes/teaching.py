"""Learning to draw from flux-shapes: captions for student and teacher at once, and the loss of a student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from models.shapes.flow import Batch, noise_levels, velocity
from models.shapes.text import CLIP_WIDTH, T5_WIDTH, Encoders


class Text(Protocol):
    """What a student reads captions with."""

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Pooled (B, P) and sequence (B, S, D); `length` is T5's, and a student may have a length of its own."""


@dataclass
class BothTexts:
    """Captions for both, to what draws batches a `models.shapes.text.Encoders`; `apart` takes them apart again."""

    student: Text
    teacher: Encoders

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """All that the teacher reads, flat, and the student's pooled vector behind it; and the student's sequence."""
        own, sequence = self.student.encode(prompts, length)
        pooled, read = self.teacher.encode(prompts, length)
        return torch.cat([pooled, read.flatten(1), own], dim=1), sequence


def apart(batch: Batch, own: int) -> tuple[Batch, Batch]:
    """A batch as the student reads it, and as the teacher does. Args: own: width of the student's pooled vector."""
    told = batch.pooled.shape[1] - CLIP_WIDTH - own
    pooled, sequence, students = batch.pooled.split([CLIP_WIDTH, told, own], dim=1)
    shown = replace(batch, pooled=pooled, sequence=sequence.unflatten(1, (-1, T5_WIDTH)))
    return replace(batch, pooled=students), shown


def taught_loss(
    model: nn.Module,
    teacher: nn.Module,
    batch: Batch,
    shown: Batch,
    guidance: float | Tensor,
    unseen: float = 0.0,
    *,
    own: Tensor | None = None,
) -> Tensor:
    """Learn to draw as a FLUX.1 with a guidance input does at a scale, or at one a row (B,), from its velocities.

    They are means where true velocities are single draws, so this learns in fewer steps, and guidance with it.
    Args: shown: the batch as the teacher reads it. unseen: see `models.shapes.flow.noise_levels`. own: what a student
    with a guidance input is told (B,).
    """
    clean = batch.latents
    sigma = noise_levels(batch, unseen)
    noisy = clean + sigma.view(-1, 1, 1) * (torch.randn_like(clean) - clean)
    with torch.no_grad():
        target = velocity(teacher, noisy, sigma, shown, guidance * torch.ones_like(sigma)).float()
    guess = velocity(model, noisy, sigma, batch, own)
    return batch.mean((guess.float() - target).square()).mean()
