"""What the engine asks of a model family: the wall between the step loop and the models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipelines.engine.request import Admission, Request, Row
from pipelines.protocol.params import GenerationParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models.accelerator import Launched


@dataclass(frozen=True, slots=True)
class Decoded:
    """A finished picture on the host: (height, width, 3) uint8, and whether it and its latents are made of numbers."""

    pixels: Tensor
    is_finite: Tensor


class Limits(Protocol):
    """What a model draws, known without its weights: it may be unloaded while requests for it wait."""

    @property
    def size_multiple(self) -> int:
        """Sides of drawn pictures are multiples of so many pixels."""

    @property
    def max_pixels(self) -> int:
        """Largest width x height that is drawn."""

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""

    def note(self, params: GenerationParams) -> str | None:
        """A sentence for the log of a request that it can do, but not as is asked for."""

    def tokens(self, params: GenerationParams) -> int:
        """Tokens that one picture adds to a step: what the cost model counts."""

    def alike(self, params: GenerationParams) -> Hashable:
        """Rows whose answers differ never share a step; None where all may."""


class Runner(Protocol):
    """One loaded checkpoint. Calls launch work and may return before the device has done it."""

    @property
    def limits(self) -> Limits:
        """What it draws."""

    @property
    def has_safety_checker(self) -> bool:
        """Whether `judge` may be called."""

    def admit(self, request: Request) -> Launched[Admission]:
        """Compute the request's conditioning and noise, beside the running steps."""

    def denoise(self, rows: Sequence[Row]) -> None:
        """Advance the latents of every row by one step, all or none."""

    def decode(self, row: Row) -> Launched[Decoded]:
        """Turn finished latents into pixels, beside the running steps."""

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        """How likely a finished picture is unsafe, beside the running steps. Needs `has_safety_checker`."""

    def preview(self, row: Row) -> NDArray[np.uint8] | None:
        """A small picture (h, w, 3) of the row as it would end now; None if nothing can be shown at the moment."""
