"""What FLUX.1 keeps of a request and of a row between steps; the engine carries both without looking inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.adapters.adapter import Uses
from pipelines.engine.request import Row
from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.step_cache import StepCache


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a request needs besides its noise, computed at admission and shared by its rows.

    Args:
        text: (T, D) prompt embeddings after the context embedder.
        modulation: the AdaLN vectors of every step.
        sigma_steps: (steps,) next sigma minus this one, in the model's dtype.
        sigmas: (steps + 1,) float32, on the host.
        rope: complex64 (T + N, 1, head_dim / 2).
        height, width: of the drawn picture, in latent cells.
        uses: its adapters.
    """

    text: Tensor
    modulation: ModulationTable
    sigma_steps: Tensor
    sigmas: tuple[float, ...]
    rope: Tensor
    height: int
    width: int
    uses: Uses = ()

    @property
    def text_tokens(self) -> int:
        return int(self.text.shape[0])

    @property
    def image_tokens(self) -> int:
        return (self.height // 2) * (self.width // 2)


@dataclass(slots=True)
class RowState:
    """What one row carries from step to step besides its latents.

    Args:
        velocity: (N, C) predicted by the last step; kept for requests that want previews.
        cache: of rows whose steps may be skipped.
    """

    velocity: Tensor | None = None
    cache: StepCache | None = None


def conditioning_of(row: Row) -> Conditioning:
    conditioning = row.request.conditioning
    assert isinstance(conditioning, Conditioning), "the request was not admitted"
    return conditioning


def state_of(row: Row) -> RowState:
    """The row's state, made when it is first asked for."""
    if row.state is None:
        row.state = RowState()
    assert isinstance(row.state, RowState), "the row belongs to another family"
    return row.state
