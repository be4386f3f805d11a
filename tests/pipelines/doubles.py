"""A runner that does no arithmetic: trouble is injected where it can be controlled, never in production code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.accelerator import CpuAccelerator, Launched
from pipelines.engine.request import Admission, Request, Row
from pipelines.engine.runner import Decoded
from pipelines.families.flux1.limits import Flux1Limits

T = TypeVar("T")


class Ready:
    """Work that was done when it was launched, or failed."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def result(self) -> T:
        return self._work()

    def notify(self, callback: Callable[[], object]) -> None:
        return None


class Held(Ready):
    """Work that ends when the test says so."""

    done = False

    def is_done(self) -> bool:
        return self.done


class Awaited(Ready):
    """Work, or a point in it, that comes when somebody waits for it."""

    is_awaited = False

    def is_done(self) -> bool:
        return self.is_awaited

    def wait(self) -> None:
        self.is_awaited = True

    def elapsed_ms(self, start: object) -> float | None:
        return None


class FakeRunner:
    """Records what ran together; raises what the hooks raise."""

    has_safety_checker = True
    limits = Flux1Limits(size_multiple=8, max_pixels=64 * 64, max_sequence_length=16)

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.on_denoise: Callable[[Sequence[Row]], None] = lambda rows: None
        self.on_admit: Callable[[Request], None] = lambda request: None
        self.on_decode: Callable[[Row], None] = lambda row: None
        self.unsafe_probability = 0.1
        self.hold_decodes = False
        self.held: list[Held] = []

    def admit(self, request: Request) -> Launched[Admission]:
        def work() -> Admission:
            self.on_admit(request)
            return Admission(object(), tuple(torch.zeros(1, 1) for _ in request.rows))

        return Ready(work)

    def denoise(self, rows: Sequence[Row]) -> None:
        self.on_denoise(rows)
        self.steps.append([row.request.job_id for row in rows])

    def decode(self, row: Row) -> Launched[Decoded]:
        assert row.latents is not None
        is_finite = torch.isfinite(row.latents).all()

        def work() -> Decoded:
            self.on_decode(row)
            return Decoded(torch.full((2, 3, 3), 200, dtype=torch.uint8), is_finite)

        if not self.hold_decodes:
            return Ready(work)
        self.held.append(Held(work))
        return self.held[-1]

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        return Ready(lambda: self.unsafe_probability)

    def preview(self, row: Row) -> NDArray[np.uint8]:
        return np.full((1, 2, 3), row.step_index, dtype=np.uint8)


class FragileDevice(CpuAccelerator):
    """A CPU that also knows CUDA's sticky errors, and counts how often its memory was tidied."""

    def __init__(self) -> None:
        super().__init__()
        self.released = 0

    def release_cached_memory(self) -> None:
        self.released += 1

    def is_fatal(self, error: BaseException) -> bool:
        return "CUDA error" in str(error)


class SlowDevice(FragileDevice):
    """One that is never through with a step before somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[Awaited] = []

    def mark(self) -> Awaited:
        self.marks.append(Awaited(lambda: None))
        return self.marks[-1]
