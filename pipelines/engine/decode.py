"""Decodes finished latents and checks the pictures for safety, beside the running steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.accelerator import Accelerator, Launched
from pipelines.engine.request import RequestError, Row
from pipelines.engine.runner import Decoded, Runner

_UNDER_WAY = 2
"""Decodes launched at once: one runs, the next is queued on the device; more would only take memory."""

_BACKLOG = 1
"""Rows waiting for a decode, besides those under way, at which steps pause: where decoding is slower than the steps,
more steps would only make a longer queue."""

_AGEING_TOKENS = 100.0
"""Tokens of picture that one second of age outweighs in the order of decodes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one row: its picture, or the error. The times are in seconds."""

    row: Row
    pixels: NDArray[np.uint8] | None
    is_unsafe: bool
    decode_s: float
    safety_s: float
    error: Exception | None = None


@dataclass(slots=True)
class _Job:
    row: Row
    started: float
    decoding: Launched[Decoded]
    decoded: float = 0.0
    pixels: NDArray[np.uint8] | None = None
    judging: Launched[float] | None = None

    @property
    def stage(self) -> Launched[Decoded] | Launched[float]:
        return self.judging or self.decoding


class DecodeQueue:
    """Rows whose steps are done; small pictures first, with ageing. Rows whose request is gone are dropped silently.

    A decode that finds no memory is tried again with no other decode beside it, and so are all from then on.
    """

    def __init__(
        self,
        runner_for: Callable[[str], Runner],
        accelerator: Accelerator,
        clock: Callable[[], float],
        on_ready: Callable[[], object],
    ) -> None:
        self._runner_for = runner_for
        self._accelerator = accelerator
        self._on_ready = on_ready
        self._clock = clock
        self._at_once = _UNDER_WAY
        self._waiting: list[Row] = []
        self._jobs: deque[_Job] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._jobs)

    @property
    def is_behind(self) -> bool:
        """Whether so many rows wait that more steps would bring no picture earlier."""
        return len(self._waiting) >= _BACKLOG

    def add(self, row: Row) -> None:
        self._waiting.append(row)

    def poll(self) -> list[Finished]:
        """Launch what can be launched; return the rows that have ended."""
        ended = [end for job in list(self._jobs) if job.stage.is_done() and (end := self._advance(job))]
        while self._waiting and len(self._jobs) < self._at_once:
            row = min(self._waiting, key=_rank)
            self._waiting.remove(row)
            if not row.request.is_gone and (end := self._launch(row)):
                ended.append(end)
        return ended

    def wait(self) -> None:
        """Sleep until the current stage of the oldest job is done."""
        if self._jobs:
            self._jobs[0].stage.wait()

    def _launch(self, row: Row) -> Finished | None:
        started = self._clock()
        try:
            decoding = self._runner_for(row.request.group).decode(row)
        except Exception as exc:
            return self._failed(row, started, exc)
        self._jobs.append(_Job(row, started, decoding))
        decoding.notify(self._on_ready)
        return None

    def _failed(self, row: Row, started: float, error: Exception) -> Finished | None:
        """The end of a row that could not be decoded, or None if it is to be tried again."""
        if self._at_once > 1 and self._accelerator.is_out_of_memory(error):
            self._accelerator.release_cached_memory()
            self._at_once = 1
            self._waiting.append(row)
            return None
        return Finished(row, None, False, self._clock() - started, 0.0, error)

    def _advance(self, job: _Job) -> Finished | None:
        """Take the stage that is done; None if another one follows."""
        now = self._clock()
        request = job.row.request
        if request.is_gone:
            self._jobs.remove(job)
            return None
        try:
            if job.judging is None:
                job.decoded, job.pixels = now, _checked(job)
                if request.params.safety_threshold is None or not self._runner_for(request.group).has_safety_checker:
                    return self._end(job, 0.0, now)
                job.judging = self._runner_for(request.group).judge(job.pixels)
                job.judging.notify(self._on_ready)
                return None
            return self._end(job, job.judging.result(), now)
        except Exception as exc:
            self._jobs.remove(job)
            return self._failed(job.row, job.started, exc)

    def _end(self, job: _Job, unsafe_probability: float, now: float) -> Finished:
        self._jobs.remove(job)
        threshold = job.row.request.params.safety_threshold
        is_unsafe = threshold is not None and unsafe_probability >= threshold
        return Finished(job.row, job.pixels, is_unsafe, job.decoded - job.started, now - job.decoded)


def _rank(row: Row) -> float:
    return row.request.tokens + _AGEING_TOKENS * row.request.arrival


def _checked(job: _Job) -> NDArray[np.uint8]:
    """The pixels of a decode that is done. Raises: RequestError if its latents or the picture were not numbers."""
    decoded = job.decoding.result()
    if not bool(decoded.is_finite):
        raise _not_numbers(job.row)
    pixels: NDArray[np.uint8] = decoded.pixels.numpy()
    return pixels


def _not_numbers(row: Row) -> RequestError:
    """Laid to the adapters where there are some: what a model draws without is numbers."""
    adapters = len(row.request.params.adapters)
    if not adapters:
        return RequestError(f"the model produced no picture for seed {row.seed}: its values are not numbers")
    which, loc = ("the adapter", ("loras", 0, "path")) if adapters == 1 else ("one of the adapters", ("loras",))
    return RequestError(f"{which} cannot be used: its weights or its scale are too large for this model", loc)
