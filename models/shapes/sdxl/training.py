"""The run of the UNet of sdxl-shapes: it draws scenes as flux-shapes does."""

from typing import cast

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.flow import Batch
from models.shapes.sdxl.text import POOLED_WIDTH, SdxlText
from models.shapes.teaching import BothTexts, apart, taught_loss
from models.shapes.text import Encoders
from models.shapes.train_flow import FlowTraining

GUIDANCE = 2.0
"""What the teacher is asked with: SDXL-Lightning draws without guidance, Playground v2.5 multiplies it by three."""
DECAY = 0.5  # of Muon's matrices: no spectral norm beyond two, where queries and keys are not normalised
UNSEEN = 0.25  # of the pictures, under noise that hides them: a UNet is slower to read than to sharpen


class SdxlTraining(FlowTraining):
    """Args: model: as FLUX.1 is called (`AsFlow`). teacher: a FLUX.1 with a guidance input. read: its encoders."""

    def __init__(
        self,
        text: SdxlText,
        model: nn.Module,
        teacher: nn.Module,
        read: Encoders,
        *,
        device: torch.device,
        tokens: int = 64 * 64,
        seed: int = 2,
    ) -> None:
        both = cast(Encoders, BothTexts(text, read.on(device)))
        never = 2.0  # guidance is no input here
        super().__init__(both, device=device, tokens=tokens, seed=seed, model=model, guided_from=never, decay=DECAY)
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        make_lean(self.teacher)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch, under autocast."""
        return taught_loss(self.model, self.teacher, *apart(batch, POOLED_WIDTH), GUIDANCE, UNSEEN)
