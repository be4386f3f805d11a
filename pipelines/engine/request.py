"""Engine-side state of one job, and of every picture in it. Torch only in the annotations."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.protocol.conditions import InputPicture
from pipelines.protocol.params import GenerationParams, wrap_seed

if TYPE_CHECKING:
    from torch import Tensor

    from models.accelerator import Launched


class RequestError(Exception):
    """This request cannot be done, for a reason in the request itself; the message is one sentence for the user.

    Args: loc: the field that is the reason, if it is one; the node answers as for a field of a wrong type.
    """

    def __init__(self, message: str, loc: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.loc = loc


@dataclass(frozen=True, slots=True)
class Admission:
    """What admission yields, computed beside the steps.

    Args:
        conditioning: whatever the family's steps need of the request.
        latents: of every row, at the noise level of its first step.
        states: of every row, what else the family keeps of it; empty for none.
        tokens: joint tokens of a row in its first step, now that they are known exactly.
    """

    conditioning: object
    latents: tuple[Tensor, ...]
    states: tuple[object, ...] = ()
    tokens: int | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One job while the engine holds it.

    Args:
        job_id, epoch: whose frames these are.
        group: rows of different groups never share a step (the weights they run on).
        alike: nor do rows in which this differs, though the weights are the same (sizes, where a step takes one).
        caches_steps: its rows may skip most of a step that would change little.
        pictures: what its conditions name by index.
        tokens: joint tokens of one row, on the average of its steps, as predicted when it arrived.
        arrival: seconds on the engine's clock; in the past for a job that has waited elsewhere.
        start_by: it fails if not admitted by then; None waits for ever.
        done_by: when its caller wants it done; it goes on after that.
        conditioning: the family's own, from its admission; None until then.
        num_steps: of each of its pictures.
        work_ms: predicted work when it arrived; never changed, so that requests keep their order.
        due_ms: when it should be done, on the engine's clock; the scheduler's.
    """

    job_id: str
    epoch: int
    params: GenerationParams
    group: str
    tokens: int
    arrival: float
    priority: int = 0
    start_by: float | None = None
    done_by: float | None = None
    caches_steps: bool = False
    alike: Hashable = None
    pictures: tuple[InputPicture, ...] = ()
    work_ms: float = 0.0
    due_ms: float = 0.0
    is_admitted: bool = False
    is_gone: bool = False
    admission: Launched[Admission] | None = None
    conditioning: object | None = None
    rows: list[Row] = field(default_factory=list)
    num_steps: int = 0
    steps_left: int = 0
    reported_step: int = 0
    rows_pending: int = 0
    added: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, count = self.params.num_steps, self.params.num_images
        self.num_steps = steps
        self.rows = [Row(self, index, steps, self.tokens) for index in range(count)]
        self.steps_left = steps * count
        self.rows_pending = count

    @property
    def total_steps(self) -> int:
        return self.num_steps * self.params.num_images

    @property
    def step(self) -> int:
        """Steps done, as one picture of it would count them."""
        return (self.total_steps - self.steps_left) // self.params.num_images

    @property
    def remaining_ms(self) -> float:
        return self.work_ms * self.steps_left / self.total_steps


@dataclass(slots=True, eq=False)
class Row:
    """One picture of a request: its place in the denoising loop and its tensors.

    Args:
        tokens: joint tokens of its next step.
        latents: what is denoised; None until it is admitted.
        pending: latents that the next step has to wait for, made beside the steps.
        state: whatever else the family keeps of it from step to step.
        computed: share of the model's blocks that its last step ran; below 1 when a step cache spared the rest.
    """

    request: Request
    index: int
    steps_left: int
    tokens: int
    latents: Tensor | None = None
    pending: Launched[Tensor] | None = None
    state: object | None = None
    computed: float = 1.0

    @property
    def step_index(self) -> int:
        """Steps done; also the index of the next step."""
        return self.request.num_steps - self.steps_left

    @property
    def seed(self) -> int:
        return wrap_seed(self.request.params.seed + self.index)

    def release(self) -> None:
        """Free everything on the device."""
        self.latents = self.state = self.pending = None


def latents_of(row: Row) -> Tensor:
    """The latents of a row that was admitted."""
    assert row.latents is not None, "the request was not admitted"
    return row.latents
