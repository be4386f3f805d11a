"""The step loop: runs the rows that the scheduler picks through their runner. Synchronous, used by one thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from models.accelerator import Accelerator, Marker
from pipelines.engine.acceleration import ChooseAcceleration, choose_acceleration
from pipelines.engine.cost import CostModel
from pipelines.engine.decode import DecodeQueue
from pipelines.engine.decode import Finished as FinishedRow
from pipelines.engine.request import Admission, Request, RequestError, Row
from pipelines.engine.runner import Limits, Runner
from pipelines.engine.scheduler import Scheduler, SchedulerConfig, SwitchMs, no_switch
from pipelines.protocol.conditions import Coarse, InputPicture
from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    FailureKind,
    Finished,
    Frame,
    Note,
    Picture,
    Preview,
    Progress,
    Started,
    Submit,
)
from pipelines.protocol.params import GenerationParams
from pipelines.protocol.tally import StepTally

_IN_FLIGHT = 2
"""Steps launched and not yet reported: while the host does the bookkeeping of one, the device has the next."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine behaves. Args: scheduler: the limits of a step. admit_per_step: prompts encoded between two
    steps, so that many new requests at once do not hold up those that run."""

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    admit_per_step: int = 4


@dataclass(frozen=True, slots=True)
class _Step:
    """One step that was launched, and what to report when the device has done it."""

    lengths: list[int]
    computed: list[float]
    started: float
    start: Marker
    end: Marker
    shares: dict[Request, float]
    requests: list[tuple[Request, int]]
    previews: list[tuple[Row, int]]


class Engine:
    """Runs many requests at once, one packed denoising step at a time.

    `add_request` and `abort` may be called between steps; all that happens is returned by `step` as frames.

    Args:
        runner_for: the runner of a model by name; may load it. Raises KeyError for a model it does not hold.
        choose_acceleration: what a request's acceleration means here; the default caches steps and has one set of
            weights.
        on_ready: called from any thread when a prompt or picture beside the steps is done, where the device can tell;
            a caller of `step(wait=False)` sleeps until then.
        switch_ms: see Scheduler.
    """

    def __init__(
        self,
        runner_for: Callable[[str], Runner],
        accelerator: Accelerator,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_ready: Callable[[], object] = lambda: None,
        choose_acceleration: ChooseAcceleration = choose_acceleration,
        switch_ms: SwitchMs = no_switch,
    ) -> None:
        self.config = config or EngineConfig()
        self.scheduler = Scheduler(self.config.scheduler, CostModel(), switch_ms)
        self.steps = 0
        self.tally = StepTally()
        self._runner_for = runner_for
        self._accelerator = accelerator
        self._clock = clock
        self._on_ready = on_ready
        self._choose_acceleration = choose_acceleration
        self._limits: dict[str, Limits] = {}
        self._requests: dict[tuple[str, int], Request] = {}
        self._decodes = DecodeQueue(runner_for, accelerator, clock, on_ready)
        self._in_flight: deque[_Step] = deque()
        self._frames: list[Frame] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._in_flight or self._frames)

    @property
    def models(self) -> set[str]:
        """Names of the checkpoints that the requests which it has take."""
        return {name for request in self._requests.values() for name in request.params.models}

    @property
    def running(self) -> int:
        """Requests that hold tensors."""
        return sum(request.is_admitted for request in self._requests.values())

    @property
    def waiting(self) -> int:
        return len(self._requests) - self.running

    def add_request(self, submit: Submit, waited_s: float = 0.0) -> None:
        """Take a request; if it cannot be done, the next `step` returns its Failed frame.

        Args: waited_s: how long it has waited for its checkpoints here, which counts as waiting.
        """
        now = self._clock()
        try:
            params = GenerationParams.from_dict(submit.params)
            pictures = tuple(InputPicture(**picture) for picture in submit.pictures)
            if len(pictures) < params.num_pictures:
                raise RequestError(f"the request needs {params.num_pictures} pictures and brings {len(pictures)}")
            limits = self._limits_of(params.model)
            limits.check(params)
            choice = self._choose_acceleration(params)
            if choice.is_coarse:
                params = replace(params, conditions=(*params.conditions, Coarse()))
        except (RequestError, ValueError, TypeError, KeyError) as exc:
            self._frames.append(_refusal(submit, exc))
            return
        request = Request(
            job_id=submit.job_id,
            epoch=submit.epoch,
            params=params,
            group=choice.group,
            tokens=limits.tokens(params),
            arrival=now - submit.age_s,
            pictures=pictures,
            priority=submit.priority,
            start_by=None if submit.start_within_s is None else now + submit.start_within_s,
            done_by=None if submit.done_within_s is None else now + submit.done_within_s,
            caches_steps=choice.caches_steps,
            alike=limits.alike(params),
            added=now - waited_s,
        )
        notes = (choice.note, limits.note(params))
        self._frames += [Note(submit.job_id, submit.epoch, note) for note in notes if note is not None]
        self._requests[submit.job_id, submit.epoch] = request
        self.scheduler.add(request)

    def _limits_of(self, model: str) -> Limits:
        if model not in self._limits:
            self._limits[model] = self._runner_for(model).limits
        return self._limits[model]

    def abort(self, cancel: Cancel) -> None:
        """Drop a request before the next step; nothing happens to one that has ended already."""
        request = self._requests.get((cancel.job_id, cancel.epoch))
        if request is not None:
            self._drop(request)
            self._frames.append(Cancelled(request.job_id, request.epoch, request.step))

    def step(self, wait: bool = True) -> list[Frame]:
        """Do one step's worth of work and return what happened since the last call.

        Args: wait: sleep until something happens if nothing can step now; a caller with other sources of events
            (new requests) passes False and looks again soon.
        Raises: whatever broke the device for good; every other error ends requests, not the engine.
        """
        now = self._clock()
        for request in self.scheduler.expired(now):
            self._fail(request, "deadline", "the request did not start in time")
        self._settle(may_wait=False)  # before a picture is delivered, its last step is reported
        for end in self._decodes.poll():
            self._deliver(end)
        rows = [] if self._decodes.is_behind else self._admit(self.scheduler.plan(now), wait)
        if rows:
            self._denoise(rows)
        self._settle(may_wait=wait and not rows)
        frames, self._frames = self._frames, []
        return frames

    def _admit(self, plan: tuple[Row, ...], wait: bool) -> list[Row]:
        """Start the newcomers of the plan and return the rows that can step now.

        A newcomer whose prompt is still being encoded joins a later step instead of stalling this one; only with
        nothing else under way does the engine wait for it.
        """
        newcomers = dict.fromkeys(row.request for row in plan if not row.request.is_admitted)
        for request in list(newcomers)[: self.config.admit_per_step]:
            self._start(request)
        ready = [row for row in plan if self._is_ready(row)]
        if ready or not wait or self._in_flight or self._decodes:
            return ready
        for row in plan:
            for launched in (row.request.admission, row.pending):
                if launched is not None:
                    with suppress(Exception):  # raised again, and answered, where the result is taken
                        launched.wait()
        return [row for row in plan if self._is_ready(row)]

    def _start(self, request: Request) -> None:
        """Begin to encode the prompt and draw the noise."""
        began = self._clock()
        self.scheduler.admit(request)
        request.timings["queue_wait"] = began - request.added
        self._frames.append(Started(request.job_id, request.epoch))
        try:
            request.admission = self._runner_for(request.group).admit(request)
            request.admission.notify(self._on_ready)
        except Exception as exc:
            self._fail_cause_of(exc, request)

    def _is_ready(self, row: Row) -> bool:
        """Whether it can step; takes over what was computed for it meanwhile."""
        request = row.request
        try:
            if request.admission is not None and request.admission.is_done():
                self._take_over(request, request.admission.result())
            if row.pending is not None and row.pending.is_done():
                row.latents, row.pending = row.pending.result(), None
        except Exception as exc:
            self._fail_cause_of(exc, request)
        return request.conditioning is not None and row.pending is None

    def _take_over(self, request: Request, admission: Admission) -> None:
        request.admission, request.pictures = None, ()
        request.conditioning = admission.conditioning
        for row, latents in zip(request.rows, admission.latents, strict=True):
            row.latents = latents
            row.tokens = row.tokens if admission.tokens is None else admission.tokens
        for row, state in zip(request.rows, admission.states, strict=bool(admission.states)):
            row.state = state
        request.timings["encode"] = self._clock() - request.added - request.timings["queue_wait"]

    def _denoise(self, rows: list[Row]) -> None:
        """Launch one step. If it fails, find the request that makes it fail."""
        began, start = self._clock(), self._accelerator.mark()
        lengths = [row.tokens for row in rows]
        try:
            self._runner_for(rows[0].request.group).denoise(rows)
        except Exception as exc:
            self._recover(rows, exc)
            return
        end = self._accelerator.mark()
        self.steps += 1
        for row, tokens in zip(rows, lengths, strict=True):
            if row.pending is not None:
                row.pending.notify(self._on_ready)
            if row.tokens != tokens:
                self.scheduler.reconsider()
        for row in self.scheduler.advance(rows):
            self._decodes.add(row)
        reports = []
        for request in dict.fromkeys(row.request for row in rows):
            if request.step != request.reported_step:
                request.reported_step = request.step
                reports.append((request, request.step))
        previews = [(row, row.step_index) for row in rows if _wants_preview(row)]
        computed = [row.computed for row in rows]
        shares = _shares(rows, lengths)
        self._in_flight.append(_Step(lengths, computed, began, start, end, shares, reports, previews))

    def _recover(self, rows: list[Row], error: Exception) -> None:
        """A step failed: out of memory makes the next ones smaller; else every row is tried alone."""
        if self._accelerator.is_fatal(error):
            raise error
        self._accelerator.release_cached_memory()
        if len(rows) == 1:
            self._fail_cause_of(error, rows[0].request)
        elif self._accelerator.is_out_of_memory(error):
            self.scheduler.out_of_memory(rows)
        else:
            for row in rows:
                if not row.request.is_gone:
                    self._denoise([row])

    def _settle(self, may_wait: bool) -> None:
        """Report the steps that the device has done. Waits for one if too many are under way, or if `may_wait`."""
        while self._in_flight:
            oldest = self._in_flight[0]
            if len(self._in_flight) < _IN_FLIGHT and not may_wait and not oldest.end.is_done():
                return
            oldest.end.wait()
            self._report(self._in_flight.popleft())
        if may_wait and not self._frames:
            self._decodes.wait()

    def _report(self, step: _Step) -> None:
        """Progress of everyone in a step that has ended; the cost model learns from its duration."""
        now = self._clock()
        elapsed = step.end.elapsed_ms(step.start)
        ms = (now - step.started) * 1e3 if elapsed is None else elapsed
        self.scheduler.observe(step.lengths, ms, step.computed)
        self.tally.note(ms / 1e3, len(step.lengths))
        for request, share in step.shares.items():
            request.timings["device"] = request.timings.get("device", 0.0) + share * ms / 1e3
        for request, done in step.requests:
            if not request.is_gone:
                before = request.timings["queue_wait"] + request.timings["encode"]
                request.timings["denoise"] = now - request.added - before
                total = request.num_steps
                # Where steps may be skipped, their mean so far predicts better than the last one.
                pace_s = request.timings["denoise"] / done if request.caches_steps else ms / 1e3
                eta = request.steps_left / request.params.num_images * pace_s
                self._frames.append(Progress(request.job_id, request.epoch, done, total, eta))
        for row, done in step.previews:
            if not row.request.is_gone:
                self._preview(row, done)

    def _preview(self, row: Row, step: int) -> None:
        request = row.request
        try:
            pixels = self._runner_for(request.group).preview(row)
        except Exception as exc:
            self._fail_cause_of(exc, request)
            return
        if pixels is None:
            return
        height, width = pixels.shape[:2]
        self._frames.append(Preview(request.job_id, request.epoch, step, row.index, width, height, pixels.tobytes()))

    def _deliver(self, end: FinishedRow) -> None:
        """Send a picture, black if it is unsafe."""
        row, request = end.row, end.row.request
        if request.is_gone:  # another picture of it failed in the same moment
            return
        if end.error is not None or end.pixels is None:
            self._fail_cause_of(end.error or RequestError("there is no picture"), request)
            return
        height, width = end.pixels.shape[:2]
        content = bytes(height * width * 3) if end.is_unsafe else end.pixels.tobytes()
        self._frames.append(
            Picture(request.job_id, request.epoch, row.index, row.seed, width, height, content, end.is_unsafe)
        )
        for name, seconds in (("decode", end.decode_s), ("safety", end.safety_s)):
            request.timings[name] = request.timings.get(name, 0.0) + seconds
            request.timings["device"] = request.timings.get("device", 0.0) + seconds
        row.release()
        request.rows_pending -= 1
        if request.rows_pending == 0:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        request.timings["inference"] = self._clock() - request.added - request.timings["queue_wait"]
        timings = {name: request.timings.get(name, 0.0) for name in _TIMINGS}
        self._drop(request)
        self._frames.append(Finished(request.job_id, request.epoch, timings))

    def _fail_cause_of(self, error: Exception, request: Request) -> None:
        """End the request that caused `error`. Raises: the error, if the device is beyond use."""
        if self._accelerator.is_fatal(error):
            raise error
        if isinstance(error, RequestError):
            self._fail(request, "input_error" if error.loc else "model_error", str(error), error.loc)
        elif self._accelerator.is_out_of_memory(error):
            self._accelerator.release_cached_memory()
            self._fail(request, "out_of_memory", "the picture does not fit into the device's memory")
        else:
            self._fail(request, "model_error", f"the model failed on this request ({type(error).__name__})")

    def _fail(self, request: Request, kind: FailureKind, message: str, loc: tuple[str | int, ...] = ()) -> None:
        self._drop(request)
        self._frames.append(Failed(request.job_id, request.epoch, kind, message, loc))

    def _drop(self, request: Request) -> None:
        """Forget a request and free its tensors."""
        request.is_gone = True
        request.admission = None
        self.scheduler.remove(request)
        self._requests.pop((request.job_id, request.epoch), None)
        request.conditioning, request.pictures = None, ()
        for row in request.rows:
            row.release()


_TIMINGS = ("queue_wait", "encode", "denoise", "decode", "safety", "device", "inference")


def _shares(rows: list[Row], lengths: list[int]) -> dict[Request, float]:
    """What part of a step is whose, by the tokens that the model computed for it."""
    work = [length * row.computed for row, length in zip(rows, lengths, strict=True)]
    total = sum(work) or 1.0
    shares: dict[Request, float] = {}
    for row, own in zip(rows, work, strict=True):
        shares[row.request] = shares.get(row.request, 0.0) + own / total
    return shares


def _refusal(submit: Submit, error: Exception) -> Failed:
    """Why a request is not taken."""
    if isinstance(error, RequestError) and error.loc:
        return Failed(submit.job_id, submit.epoch, "input_error", str(error), error.loc)
    message = f"no model {error} here" if isinstance(error, KeyError) else str(error)
    return Failed(submit.job_id, submit.epoch, "model_error", message)


def _wants_preview(row: Row) -> bool:
    every = row.request.params.preview_every
    return every > 0 and row.steps_left > 0 and row.step_index % every == 0
