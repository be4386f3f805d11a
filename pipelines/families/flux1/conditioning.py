"""What FLUX.1 keeps of a request and of a row between steps; the engine carries both without looking inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.adapters.adapter import Uses
from pipelines.engine.request import Row
from pipelines.families.flux1.coarse import Enlargement
from pipelines.families.flux1.controlnets import NetUse
from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.step_cache import StepCache
from pipelines.pictures.overlay import Overlay


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A run of steps at one size. Most requests have one.

    Args:
        first: index of its first step among all of the request.
        sigmas: (steps + 1,) float32, on the host.
        sigma_steps: (steps,) next sigma minus this one, in the model's dtype.
        levels: `sigmas` in the model's dtype, on the device.
        rope: complex64 (T + N + M, 1, head_dim / 2).
        height, width: of the drawn picture, in latent cells.
    """

    first: int
    sigmas: tuple[float, ...]
    sigma_steps: Tensor
    levels: Tensor
    rope: Tensor
    height: int
    width: int

    @property
    def image_tokens(self) -> int:
        return (self.height // 2) * (self.width // 2)


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """Where the picture that a row started from is held.

    Args:
        mask: (N, C) in the model's dtype: how much may change, 1 all.
        steps: of the phase.
        is_differential: a place that may change by a half is held for half of the steps; else it is half held in all.
    """

    mask: Tensor
    steps: int
    is_differential: bool

    def free(self, step: int) -> Tensor:
        """(N, C), 1 where step `step` of the phase may change it."""
        if not self.is_differential:
            return self.mask
        return (1 - self.mask <= step / self.steps).to(self.mask.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What a request needs besides its noise, computed at admission and shared by its rows.

    Args:
        text: (T, D) prompt embeddings, and what stands behind them, after the context embedder.
        modulation: the AdaLN vectors of every step.
        phases: in order.
        enlargement: from the first phase to the second, where the first steps are coarse.
        references: (M, C) packed latents of pictures to look at, behind the drawn tokens.
        hold: where the picture that the rows started from is held.
        overlay: the pixels to put back in the end.
        uses: its adapters.
        nets: its ControlNets.
    """

    text: Tensor
    modulation: ModulationTable
    phases: tuple[Phase, ...]
    enlargement: Enlargement | None = None
    references: Tensor | None = None
    hold: Hold | None = None
    overlay: Overlay | None = None
    uses: Uses = ()
    nets: tuple[NetUse, ...] = ()

    def phase(self, step: int) -> Phase:
        """The phase of a step; after the last step, the last phase."""
        return next(phase for phase in reversed(self.phases) if phase.first <= step)

    @property
    def text_tokens(self) -> int:
        return int(self.text.shape[0])

    @property
    def reference_tokens(self) -> int:
        return 0 if self.references is None else int(self.references.shape[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What steps read of it."""
        held = [each for phase in self.phases for each in (phase.rope, phase.sigma_steps, phase.levels)]
        adapters = [tensor for adapter, _ in self.uses for tensor in adapter.tensors]
        optional = (self.references, None if self.hold is None else self.hold.mask)
        given = [each for each in optional if each is not None]
        nets = [tensor for net in self.nets for tensor in net.tensors]
        coarse = () if self.enlargement is None else self.enlargement.tensors
        return (self.text, *self.modulation.tensors, *held, *adapters, *nets, *coarse, *given)


@dataclass(slots=True)
class RowState:
    """What one row carries from step to step besides its latents.

    Args:
        velocity: (N, C) predicted by the last step; kept for requests that want previews.
        cache: of rows whose steps may be skipped.
        channels: (N, X) that stand beside the latents in every step.
        clean, noise: (N, C) of a row that is held to the picture it started from; noise, of the full size, of one
            whose first steps are coarse, too.
        hints: (N, C) for each ControlNet.
    """

    velocity: Tensor | None = None
    cache: StepCache | None = None
    channels: Tensor | None = None
    clean: Tensor | None = None
    noise: Tensor | None = None
    hints: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What came from admission."""
        return tuple(each for each in (self.channels, self.clean, self.noise, *self.hints) if each is not None)


def conditioning_of(row: Row) -> Conditioning:
    conditioning = row.request.conditioning
    assert isinstance(conditioning, Conditioning), "the request was not admitted"
    return conditioning


def phase_of(row: Row) -> Phase:
    """The phase of the row's next step."""
    return conditioning_of(row).phase(row.step_index)


def state_of(row: Row) -> RowState:
    """The row's state, made when it is first asked for."""
    if row.state is None:
        row.state = RowState()
    assert isinstance(row.state, RowState), "the row belongs to another family"
    return row.state
