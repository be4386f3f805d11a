"""One run of the transformer of flux2-shapes: scenes and edits in turn, first plainly, then guided by a teacher."""

import random
from typing import cast

import torch
from torch import Tensor, nn

from models.shapes.flow import Batch, flow_loss
from models.shapes.flux2.flow import taught_loss
from models.shapes.flux2.text import KleinText
from models.shapes.siblings.edits import draw_edits
from models.shapes.text import Encoders
from models.shapes.train_flow import FlowTraining, draw_scenes

EDITS = 0.45  # share of the steps: one model draws and edits
GUIDANCE = 3.5  # what a teacher is asked with
TAUGHT_PEAK = 0.3  # of the learning rates, once what is drawn is known


def draw_late(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """As at the end of the first part: a teacher goes on from there."""
    return draw_both(encoders, rng, 1.0, tokens)


def draw_both(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A batch of edits, or of scenes."""
    return (draw_edits if rng.random() < EDITS else draw_scenes)(encoders, rng, done, tokens)


class KleinTraining(FlowTraining):
    """Args: model: as FLUX.1 is called (`AsFlux1`). teacher: of the second part of the training, None in the first."""

    def __init__(
        self,
        text: KleinText,
        model: nn.Module,
        teacher: nn.Module | None = None,
        *,
        device: torch.device,
        tokens: int = 64 * 64,
    ) -> None:
        super().__init__(
            cast(Encoders, text),
            device=device,
            tokens=tokens,
            model=model,
            draw=draw_both if teacher is None else draw_late,
            guided_from=2.0,  # guidance is no input here: never
            peak=1.0 if teacher is None else TAUGHT_PEAK,
        )
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch, under autocast."""
        if self.teacher is None:
            return flow_loss(self.model, batch)
        untold = self.nothing(batch, batch.sequence.shape[1])  # a picture to edit stays
        return taught_loss(self.model, self.teacher, batch, untold, GUIDANCE)
