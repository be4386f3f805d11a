"""What an editor must know before it can change one thing and leave the rest alone, asked for half-way.

Velocities tell little of either: which shape stands where in the picture that it is shown, and what the instruction
means by "the star". Without these questions it does what is asked to all things that it sees.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.shapes.flow import Batch
from models.shapes.following import overheard
from models.shapes.scenes import SHAPES
from models.shapes.siblings.edits import EditBatch
from models.shapes.train_flow import FlowTraining

NAMING, POINTING = 0.1, 0.2  # weights beside the loss of velocities


class Pointed(nn.Module):
    """An editor, and heads on its blocks that are learned with it and not stored; called as the editor is."""

    def __init__(self, editor: nn.Module, transformer: FluxTransformer2DModel | Flux2Transformer2DModel) -> None:
        """Args: transformer: the editor's, or the editor itself."""
        super().__init__()
        self.editor = editor
        self._blocks = [transformer.transformer_blocks[-1], transformer.single_transformer_blocks[1]]
        width = transformer.config["num_attention_heads"] * transformer.config["attention_head_dim"]
        self.naming = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(SHAPES)))
        self.pointing = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The editor's answer."""
        return self.editor(*inputs, **named)

    def asked(self, batch: EditBatch, loss: Callable[[], Tensor]) -> Tensor:
        """A loss of the editor over a batch, and of what its heads answer on the way."""
        with overheard(self._blocks) as states:
            total = loss()
        tokens = batch.latents.shape[1]
        known, meant = (heard[:, -2 * tokens :] for heard in states)  # what is made, then what is shown
        names = self.naming(known[:, tokens:]).float().flatten(0, 1)
        named = cross_entropy(names, batch.shapes.flatten(), ignore_index=-1)
        changed = (batch.changed > 0).float().squeeze(2).repeat(1, 2)
        pointed = binary_cross_entropy_with_logits(self.pointing(meant).float().squeeze(2), changed)
        return total + NAMING * named + POINTING * pointed


class EditTraining(FlowTraining):
    """The run of an editor, of a `Pointed` with its questions."""

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch in a phase, under autocast."""
        if isinstance(self.model, Pointed) and isinstance(batch, EditBatch):
            return self.model.asked(batch, partial(super().loss_of, batch, phase))
        return super().loss_of(batch, phase)
