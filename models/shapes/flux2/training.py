"""The run of flux2-shapes, transformer and text encoder: scenes as flux-shapes draws them, and edits as they are."""

import random
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import Batch, flow_loss
from models.shapes.flux2.text import KleinText, KleinWords
from models.shapes.siblings.edits import draw_edits
from models.shapes.siblings.questions import Asked, AskedBatch
from models.shapes.teaching import BothTexts, apart, taught_loss
from models.shapes.text import Encoders
from models.shapes.train_flow import NEVER, FlowTraining, draw_scenes

EDITS_FROM = 0.35  # of the run: who edits must know how to draw
EDITS = 0.5  # share of the steps from there on
EVERYTHING_FROM = 0.2  # where in the curriculum it starts: what it starts from can draw a little
PEAK = 0.5  # of the learning rates of who starts from nothing
GUIDANCE = 3.5  # what the teacher is asked with


class KleinTraining(FlowTraining):
    """Args: model: an `Asked` `AsFlux1` with a text encoder. teacher: a FLUX.1 that knows guidance. read: its words."""

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
        words = KleinWords(text)
        both = cast(Encoders, BothTexts(words, read.on(device)))

        def draw(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
            if done >= EDITS_FROM and rng.random() < EDITS:
                return draw_edits(encoders, rng, done, tokens)
            return draw_scenes(both, rng, max(done, EVERYTHING_FROM), tokens)

        model.requires_grad_(True)
        super().__init__(
            cast(Encoders, words),
            device=device,
            tokens=tokens,
            model=model,
            draw=draw,
            guided_from=NEVER,
            peak=PEAK,
        )
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        make_lean(self.teacher)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch, under autocast."""
        if isinstance(batch, AskedBatch):
            assert isinstance(self.model, Asked)
            return self.model.asked(batch, partial(flow_loss, self.model, batch))
        return taught_loss(self.model, self.teacher, *apart(batch, own=1), GUIDANCE)
