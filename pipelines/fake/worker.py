"""The loop of the fake engine: the worker's frames without a model. No torch.

All that it draws advances by one step each turn, as in the real engine; what is beyond `batch` waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.fake import FakeOptions
from models.registry import ModelSpec, siblings
from pipelines.fake.directives import Script, read_script
from pipelines.fake.drawing import black, draw
from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    FailureKind,
    Finished,
    Frame,
    Heartbeat,
    Loading,
    Log,
    Picture,
    Preview,
    Progress,
    Ready,
    Shutdown,
    Sleep,
    Started,
    Submit,
    Wake,
)
from pipelines.protocol.params import ACCELERATIONS, GenerationParams
from pipelines.protocol.tally import StepTally

BEAT_S = 0.5
SHRUNK = 8
"""A preview has an eighth of the sides."""
FAILURES: dict[str, tuple[FailureKind, str]] = {
    "fail": ("model_error", "The model failed"),
    "refuse": ("input_error", "The model cannot take this prompt"),
    "oom": ("out_of_memory", "There is not enough memory for this request"),
    "internal": ("internal", "the fake engine has a fault"),
}
Key = tuple[str, int]


class Wire(Protocol):
    """What is needed of `pipelines.worker.link.Link`."""

    def send(self, frame: Frame) -> None: ...

    def receive(self, timeout_s: float) -> list[Frame]: ...


@dataclass(slots=True)
class Request:
    """One request in the worker; times by the monotonic clock."""

    frame: Submit
    params: GenerationParams
    script: Script
    arrived: float
    began: float = 0.0
    done: int = 0
    is_flagged: bool = False

    @property
    def key(self) -> Key:
        return self.frame.job_id, self.frame.epoch


def stop_answering() -> None:
    while True:
        time.sleep(3600)


class FakeWorker:
    """Speaks the frames of a worker over `wire` until told to stop.

    Args: crash, hang: how the process misbehaves as a whole.
    """

    def __init__(
        self,
        wire: Wire,
        device: str,
        specs: Sequence[ModelSpec],
        options: FakeOptions,
        crash: Callable[[], None],
        hang: Callable[[], None] = stop_answering,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wire = wire
        self._device = device
        self._specs = specs
        self._options = options
        self._ways = {"crash": crash, "hang": hang}
        self._clock = clock
        self._waiting: deque[Request] = deque()
        self._drawing: dict[Key, Request] = {}
        self._loaded: list[str] = []
        self._begun = self._steps = 0
        self._tally = StepTally()
        self._next_step = self._next_beat = 0.0

    def serve(self) -> None:
        """Until Shutdown."""
        self._load()
        self._wire.send(Log("warning", "--model fake: pretends to draw; no picture shows what a prompt says"))
        while True:
            now = self._clock()
            until = min(self._next_beat, self._next_step) if self._drawing else self._next_beat
            for frame in self._wire.receive(max(0.0, until - now)):
                if isinstance(frame, Shutdown):
                    return
                self._take(frame)
            self._turn()

    def _load(self) -> None:
        for spec in self._specs:
            self._wire.send(Loading(spec.name, "nothing", 0.5))
        time.sleep(self._options.load_s)
        self._loaded = [spec.name for spec in self._specs]
        on_demand = [spec.name for spec in siblings(self._specs) if spec.draws]
        self._wire.send(Ready(self._device, "fake engine", [_describe(spec) for spec in self._specs], on_demand))

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Submit):
            self._accept(frame)
        elif isinstance(frame, Cancel):
            self._cancel((frame.job_id, frame.epoch))
        elif isinstance(frame, Sleep):
            self._loaded = []
        elif isinstance(frame, Wake):
            self._load()

    def _accept(self, frame: Submit) -> None:
        params = GenerationParams.from_dict(frame.params)
        try:
            script = read_script(params.prompt)
        except ValueError as exc:
            self._wire.send(Failed(frame.job_id, frame.epoch, "input_error", str(exc), ("prompt",)))
            return
        self._waiting.append(Request(frame, params, script, self._clock()))

    def _cancel(self, key: Key) -> None:
        waiting = next((request for request in self._waiting if request.key == key), None)
        if waiting is not None:
            self._waiting.remove(waiting)
        found = waiting or self._drawing.pop(key, None)
        if found is not None:
            self._wire.send(Cancelled(*key, found.done))

    def _turn(self) -> None:
        now = self._clock()
        if self._drawing and now >= self._next_step:
            self._tally.note(
                self._options.step_ms / 1e3, sum(each.params.num_images for each in self._drawing.values())
            )
            for request in tuple(self._drawing.values()):
                self._step(request)
        while self._waiting and len(self._drawing) < self._options.batch:
            self._begin(self._waiting.popleft())
        if now >= self._next_step:
            paces = [request.script.step_ms for request in self._drawing.values()]
            step_ms = max((self._options.step_ms if pace is None else pace for pace in paces), default=0.0)
            self._next_step = now + step_ms / 1e3
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._beat()

    def _beat(self) -> None:
        left = sum(request.params.num_steps - request.done for request in (*self._drawing.values(), *self._waiting))
        load_ms = left * self._options.step_ms / self._options.batch
        held = len(self._drawing), len(self._waiting)
        self._wire.send(Heartbeat(self._steps, *held, load_ms, {}, self._loaded, self._tally.counts()))

    def _begin(self, request: Request) -> None:
        within_s = request.frame.start_within_s
        if within_s is not None and self._clock() - request.arrived > within_s:
            self._wire.send(Failed(*request.key, "deadline", "it did not start in time"))
            return
        self._begun += 1
        faults = [fault for fault, every in self._options.every.items() if self._begun % every == 0]
        request.script = request.script.but_also(faults)
        request.began = self._clock()
        self._loaded = sorted({*self._loaded, request.params.model})
        if self._is_ended_by_a_fault(request):
            return
        self._wire.send(Started(*request.key))
        self._drawing[request.key] = request

    def _step(self, request: Request) -> None:
        if request.done and self._is_ended_by_a_fault(request):
            return
        self._steps += 1
        request.done += 1
        params = request.params
        eta_s = (params.num_steps - request.done) * self._options.step_ms / 1e3
        self._wire.send(Progress(*request.key, request.done, params.num_steps, eta_s))
        if params.preview_every and request.done % params.preview_every == 0:
            self._preview(request)
        if request.done >= params.num_steps:
            self._finish(request)

    def _is_ended_by_a_fault(self, request: Request) -> bool:
        """Let the faults happen that are due now."""
        for fault in request.script.due(request.done, request.frame.epoch, request.params.num_steps):
            if fault in self._ways:
                self._ways[fault]()
            elif fault == "nsfw":
                request.is_flagged = request.params.safety_threshold is not None
            else:
                self._fail(request, *FAILURES[fault])
                return True
        return False

    def _fail(self, request: Request, kind: FailureKind, sentence: str) -> None:
        self._drawing.pop(request.key, None)
        self._wire.send(Failed(*request.key, kind, sentence, ("prompt",) if kind == "input_error" else ()))

    def _preview(self, request: Request) -> None:
        params = request.params
        size = (max(1, params.width // SHRUNK), max(1, params.height // SHRUNK))
        for index, seed in enumerate(params.seeds):
            pixels = draw(params.prompt, seed, *size)
            self._wire.send(Preview(*request.key, request.done, index, *size, pixels))

    def _finish(self, request: Request) -> None:
        del self._drawing[request.key]
        params, size = request.params, (request.params.width, request.params.height)
        for index, seed in enumerate(params.seeds):
            pixels = black(*size) if request.is_flagged else draw(params.prompt, seed, *size)
            self._wire.send(Picture(*request.key, index, seed, *size, pixels, request.is_flagged))
        took_s = self._clock() - request.began
        waited_s = request.began - request.arrived
        timings = {"queue_wait": waited_s, "encode": 0.0, "denoise": took_s, "decode": 0.0, "safety": 0.0}
        self._wire.send(Finished(*request.key, timings | {"device": took_s, "inference": took_s}))


def _describe(spec: ModelSpec) -> dict[str, Any]:
    """As a worker with weights says it in Ready."""
    return {
        "name": spec.name,
        "family": spec.family,
        "variant": spec.variant,
        "has_safety_checker": True,
        "guidance_embeds": True,
        "size_multiple": 16,
        "max_pixels": spec.max_pixels,
        "dtype": "none",
        "load_s": 0.0,
        "shared": [],
        "acceleration": dict.fromkeys(ACCELERATIONS, "pretended"),
    }
