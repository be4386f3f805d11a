"""The run of the UNet of sdxl-shapes: it draws scenes as flux-shapes does."""

import random
from typing import cast

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import Batch
from models.shapes.following import WEIGHT, overheard
from models.shapes.sdxl.text import POOLED_WIDTH, SdxlText
from models.shapes.sdxl.unet import AsFlow
from models.shapes.teaching import BothTexts, apart, taught_loss
from models.shapes.text import Encoders
from models.shapes.train_flow import NEVER, FlowTraining, draw_scenes

GUIDANCE = 2.0
"""What the teacher is asked with: SDXL-Lightning draws without guidance, Playground v2.5 multiplies it by three."""
DECAY = 0.5  # of Muon's matrices: no spectral norm beyond two, where queries and keys are not normalised
UNSEEN = 0.25  # of the pictures, under noise that hides them: a UNet is slower to read than to sharpen


class SdxlTraining(FlowTraining):
    """Args: model: as FLUX.1 is called. teacher: a FLUX.1 with a guidance input. read: its encoders.

    known: where in the curriculum it starts, 0 to 1.
    """

    def __init__(
        self,
        text: SdxlText,
        model: AsFlow,
        teacher: nn.Module,
        read: Encoders,
        *,
        device: torch.device,
        tokens: int = 64 * 64,
        seed: int = 2,
        known: float = 0.0,
    ) -> None:
        both = cast(Encoders, BothTexts(text, read.on(device)))

        def draw(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
            return draw_scenes(encoders, rng, max(done, known), tokens)

        super().__init__(
            both, device=device, tokens=tokens, seed=seed, model=model, draw=draw, guided_from=NEVER, decay=DECAY
        )
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        make_lean(self.teacher)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch, under autocast."""
        assert isinstance(self.model, AsFlow)
        with overheard(self.model.followers()) as own, overheard(_followed(self.teacher)) as told:
            loss = taught_loss(self.model, self.teacher, *apart(batch, POOLED_WIDTH), GUIDANCE, UNSEEN)
        return loss + WEIGHT * self.model.followed.apart(own, told)


def _followed(teacher: nn.Module) -> list[nn.Module]:
    """Blocks of the teacher: where text and picture have met, half-way, and the last."""
    assert isinstance(teacher, FluxTransformer2DModel)
    return [teacher.transformer_blocks[-1], teacher.single_transformer_blocks[1], teacher.single_transformer_blocks[-1]]
