"""The run of the transformer of flux2-shapes: scenes as flux-shapes draws them, and edits as they are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import Batch, flow_loss
from models.shapes.flux2.flow import taught_loss
from models.shapes.flux2.text import KleinText
from models.shapes.siblings.edits import draw_edits
from models.shapes.text import CLIP_WIDTH, Encoders
from models.shapes.train_flow import FlowTraining, draw_scenes

EDITS_FROM = 0.2  # of the run: who edits must know how to draw
EDITS = 0.45  # share of the steps from there on
GUIDANCE = 3.5  # what the teacher is asked with


@dataclass
class BothTexts:
    """Captions for student and teacher at once; to what draws batches, `models.shapes.text.Encoders`.

    Where the student's pooled vector would be, which FLUX.2 does not have, lies all that the teacher reads.
    """

    student: KleinText
    teacher: Encoders

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """(B, CLIP_WIDTH + length * T5_WIDTH) of the teacher's, and the student's sequence."""
        pooled, sequence = self.teacher.encode(prompts, length)
        return torch.cat([pooled, sequence.flatten(1)], dim=1), self.student.encode(prompts, length)[1]


def as_taught(batch: Batch) -> Batch:
    """A batch with captions for both, as the teacher reads it."""
    pooled, sequence = batch.pooled.split([CLIP_WIDTH, batch.pooled.shape[1] - CLIP_WIDTH], dim=1)
    return replace(batch, pooled=pooled, sequence=sequence.unflatten(1, (batch.sequence.shape[1], -1)))


class KleinTraining(FlowTraining):
    """Args: model: as FLUX.1 is called (`AsFlux1`). teacher: a FLUX.1 with a guidance input. read: its encoders."""

    def __init__(
        self,
        text: KleinText,
        model: nn.Module,
        teacher: nn.Module,
        read: Encoders,
        *,
        device: torch.device,
        tokens: int = 64 * 64,
    ) -> None:
        both = cast(Encoders, BothTexts(text, read.on(device)))

        def draw(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
            edits = done >= EDITS_FROM and rng.random() < EDITS
            return draw_edits(encoders, rng, done, tokens) if edits else draw_scenes(both, rng, done, tokens)

        super().__init__(
            cast(Encoders, text),
            device=device,
            tokens=tokens,
            model=model,
            draw=draw,
            guided_from=2.0,  # guidance is no input here: never
        )
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        make_lean(self.teacher)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch, under autocast."""
        if batch.reference is not None:
            return flow_loss(self.model, batch)
        return taught_loss(self.model, self.teacher, batch, as_taught(batch), GUIDANCE)
