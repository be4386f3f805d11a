"""The fake engine's frames, with a clock and a wire of the test's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from models.fake import FakeOptions
from models.registry import ModelSpec
from pipelines.fake.drawing import draw
from pipelines.fake.worker import FakeWorker
from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    Finished,
    Frame,
    Heartbeat,
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
from pipelines.protocol.params import GenerationParams

SPEC = ModelSpec("fake", "fake:")
TURNS = 200


class Wire:
    """Gives frames at their turns and takes time as `receive` is told to wait; ends with Shutdown."""

    def __init__(self, frames: Sequence[tuple[int, Frame]]) -> None:
        self.now = 0.0
        self.sent: list[Frame] = []
        self.times: list[float] = []
        self._coming = deque(frames)
        self._turn = 0

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)
        self.times.append(self.now)

    def receive(self, timeout_s: float) -> list[Frame]:
        self.now += timeout_s
        self._turn += 1
        if self._turn > TURNS:
            return [Shutdown()]
        frames: list[Frame] = []
        while self._coming and self._coming[0][0] < self._turn:
            frames.append(self._coming.popleft()[1])
        return frames

    def of(self, job_id: str) -> list[Frame]:
        return [frame for frame in self.sent if getattr(frame, "job_id", None) == job_id]


def ask(job_id: str, prompt: str = "a fox", epoch: int = 1, within_s: float | None = None, **changes: Any) -> Submit:
    wanted: dict[str, Any] = {"width": 32, "height": 16, "num_inference_steps": 3, "guidance_scale": 3.5, "seed": 7}
    params = GenerationParams("fake", prompt, **(wanted | changes))
    return Submit(job_id, epoch, params.to_dict(), start_within_s=within_s)


def play(*frames: Frame | tuple[int, Frame], options: FakeOptions | None = None, **ways: Any) -> Wire:
    wire = Wire([frame if isinstance(frame, tuple) else (0, frame) for frame in frames])
    ways = {"crash": lambda: None} | ways
    FakeWorker(wire, "cpu", [SPEC], options or FakeOptions(), clock=lambda: wire.now, **ways).serve()
    return wire


def names(frames: Sequence[Frame]) -> list[str]:
    return [type(frame).__name__ for frame in frames]


def test_a_request_has_its_frames_in_order() -> None:
    wire = play(ask("a", num_images=2, preview_every=2))
    steps = ["Progress", "Progress", "Preview", "Preview", "Progress"]
    assert names(wire.of("a")) == ["Started", *steps, "Picture", "Picture", "Finished"]
    pictures = [frame for frame in wire.sent if isinstance(frame, Picture)]
    assert [(picture.index, picture.seed) for picture in pictures] == [(0, 7), (1, 8)]
    assert pictures[0].pixels == draw("a fox", 7, 32, 16) != pictures[1].pixels
    assert all(len(picture.pixels) == 32 * 16 * 3 for picture in pictures)


def test_ready_names_the_models_it_stands_for() -> None:
    (ready,) = [frame for frame in play().sent if isinstance(frame, Ready)]
    assert ready.models[0]["name"] == "fake"
    assert "fake-kontext" in ready.on_demand
    assert "fake-depth-estimator" not in ready.on_demand  # it draws nothing by itself


def test_a_step_takes_as_long_as_told() -> None:
    wire = play(ask("a"), ask("b", "a fox [[step_ms=300]]"), options=FakeOptions(step_ms=100.0, batch=1))
    ends = [time for time, frame in zip(wire.times, wire.sent, strict=True) if isinstance(frame, Finished)]
    assert ends == pytest.approx([0.3, 1.2])


def test_what_is_beyond_the_batch_waits() -> None:
    wire = play(*(ask(name) for name in "abc"), options=FakeOptions(batch=2))
    order = [frame.job_id for frame in wire.sent if isinstance(frame, Started | Finished)]
    assert order == ["a", "b", "a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("fault", "kind", "loc"),
    [
        ("fail", "model_error", ()),
        ("oom", "out_of_memory", ()),
        ("internal", "internal", ()),
        ("refuse", "input_error", ("prompt",)),
    ],
)
def test_a_fault_ends_its_own_request_alone(fault: str, kind: str, loc: tuple[str, ...]) -> None:
    wire = play(ask("bad", f"a fox [[{fault}]]"), ask("good"))
    (failed,) = [frame for frame in wire.sent if isinstance(frame, Failed)]
    assert (failed.job_id, failed.kind, failed.loc) == ("bad", kind, loc)
    assert names(wire.of("bad")) == ["Started", "Progress", "Failed"]
    assert names(wire.of("good"))[-1] == "Finished"


def test_a_directive_that_does_not_exist_is_the_prompts_fault() -> None:
    (failed,) = [frame for frame in play(ask("a", "[[explode]]")).sent if isinstance(frame, Failed)]
    assert (failed.kind, failed.loc) == ("input_error", ("prompt",))
    assert "explode" in failed.message


@pytest.mark.parametrize("way", ["crash", "hang"])
def test_the_process_misbehaves_where_told(way: str) -> None:
    struck: list[str] = []
    play(ask("a"), ask("b", f"[[{way} at=0]]"), **{way: lambda: struck.append(way)})
    assert struck == [way]


def test_every_nth_request_is_struck() -> None:
    wire = play(*(ask(f"{n}") for n in range(1, 7)), options=FakeOptions(every={"oom": 3}))
    assert [frame.job_id for frame in wire.sent if isinstance(frame, Failed)] == ["3", "6"]


@pytest.mark.parametrize(("threshold", "is_flagged"), [(0.5, True), (None, False)])
def test_a_flagged_picture_is_black_unless_the_checker_is_off(threshold: float | None, is_flagged: bool) -> None:
    wire = play(ask("a", "a fox [[nsfw]]", safety_threshold=threshold))
    (picture,) = [frame for frame in wire.sent if isinstance(frame, Picture)]
    assert (picture.has_nsfw_concept, not any(picture.pixels)) == (is_flagged, is_flagged)


def test_a_cancel_reaches_what_runs_and_what_waits() -> None:
    wire = play(
        ask("a", num_inference_steps=50), ask("b"), (3, Cancel("b", 1)), (4, Cancel("a", 1)), (5, Cancel("x", 1)),
        options=FakeOptions(batch=1),
    )  # fmt: skip
    cancelled = [frame for frame in wire.sent if isinstance(frame, Cancelled)]
    assert [frame.job_id for frame in cancelled] == ["b", "a"]
    assert (cancelled[0].step, cancelled[1].step > 0) == (0, True)
    assert not [frame for frame in wire.sent if isinstance(frame, Finished)]


def test_what_does_not_start_in_time_fails_by_its_deadline() -> None:
    wire = play(ask("a", num_inference_steps=50), ask("b", within_s=0.1), options=FakeOptions(batch=1))
    (failed,) = [frame for frame in wire.sent if isinstance(frame, Failed)]
    assert (failed.job_id, failed.kind) == ("b", "deadline")


def test_it_beats_and_counts_what_it_holds() -> None:
    wire = play(ask("a", num_inference_steps=100), ask("b"), options=FakeOptions(batch=1))
    beats = [frame for frame in wire.sent if isinstance(frame, Heartbeat)]
    assert (beats[1].running, beats[1].waiting) == (1, 1)
    assert beats[1].load_ms > 0
    assert (beats[-1].running, beats[-1].steps) == (0, 103)


def test_it_sleeps_and_wakes() -> None:
    wire = play(Sleep(), (10, Wake()))
    beats = [frame.loaded for frame in wire.sent if isinstance(frame, Heartbeat)]
    assert [] in beats
    assert beats[-1] == ["fake"]
    assert names(wire.sent).count("Ready") == 2
    assert not [frame for frame in wire.sent if isinstance(frame, Progress | Preview)]
