"""What a sibling must know before it can draw, asked for half-way: what stands where, and what an instruction means.

Velocities tell little of either: without these questions an editor does what is asked to all things that it sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.shapes.draw import Drawing
from models.shapes.flow import TOKEN, Batch
from models.shapes.following import overheard
from models.shapes.scenes import SHAPES
from models.shapes.train_flow import FlowTraining

NAMING, POINTING = 0.1, 0.2  # weights beside the loss of velocities


@dataclass
class AskedBatch(Batch):
    """And the answers: `shapes` (B, tokens) int64 of the last image tokens, -1 for none; of an edit, which tokens of
    both pictures it has `changed` (B, L, 1) bool."""

    shapes: Tensor = field(default_factory=lambda: torch.empty(0))
    changed: Tensor | None = None


def shapes_at(drawing: Drawing) -> Tensor:
    """The shape in the middle of every token of a drawing, -1 for none: (B, tokens) int64."""
    pose = drawing.poses
    rows, columns = (torch.arange(side // TOKEN, device=pose.device) for side in (drawing.height, drawing.width))
    y, x = torch.meshgrid((rows + 0.5) * TOKEN, (columns + 0.5) * TOKEN, indexing="ij")
    away = torch.hypot(x.reshape(1, -1, 1) - pose[:, None, :, 0], y.reshape(1, -1, 1) - pose[:, None, :, 1])
    nearest, which = (away / pose[:, None, :, 2]).min(2)
    return torch.where(nearest < 1, pose[..., 8].long().gather(1, which), -1)


class Asked(nn.Module):
    """A model, and heads on two of its blocks that are learned with it and not stored; called as the model is."""

    def __init__(self, model: nn.Module, transformer: FluxTransformer2DModel | Flux2Transformer2DModel) -> None:
        """Args: transformer: the model's, or the model itself."""
        super().__init__()
        self.model = model
        self._blocks = [transformer.transformer_blocks[-1], transformer.single_transformer_blocks[1]]
        width = transformer.config["num_attention_heads"] * transformer.config["attention_head_dim"]
        self.naming = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(SHAPES)))
        self.pointing = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The model's answer."""
        return self.model(*inputs, **named)

    def asked(self, batch: AskedBatch, loss: Callable[[], Tensor]) -> Tensor:
        """A loss of the model over a batch, and of what its heads answer on the way."""
        with overheard(self._blocks) as states:
            total = loss()
        known, meant = states
        names = self.naming(known[:, -batch.shapes.shape[1] :]).float().flatten(0, 1)
        named = cross_entropy(names, batch.shapes.flatten(), ignore_index=-1, reduction="sum")
        total = total + NAMING * named / (batch.shapes >= 0).sum().clamp(min=1)  # small things may miss every middle
        if batch.changed is None:
            return total
        changed = batch.changed.float().squeeze(2).repeat(1, 2)  # what is made, then what is shown
        pointed = self.pointing(meant[:, -changed.shape[1] :]).float().squeeze(2)
        return total + POINTING * binary_cross_entropy_with_logits(pointed, changed)


class AskedTraining(FlowTraining):
    """The run of a sibling, of an `Asked` with its questions."""

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch in a phase, under autocast."""
        if isinstance(self.model, Asked) and isinstance(batch, AskedBatch):
            return self.model.asked(batch, partial(super().loss_of, batch, phase))
        return super().loss_of(batch, phase)
