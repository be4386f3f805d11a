"""The step loop under every kind of trouble, over a runner that does no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from models.registry import TINY
from pipelines.engine.engine import Engine
from pipelines.engine.request import Admission, Request, RequestError, Row
from pipelines.engine.runner import Decoded
from pipelines.protocol.conditions import Adapter, Fill, ImageToImage, InputPicture
from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    Finished,
    Frame,
    Picture,
    Preview,
    Progress,
    Started,
    Submit,
)
from tests.pipelines.doubles import Awaited, FakeRunner, FragileDevice, SlowDevice
from tests.pipelines.driving import drain, make_engine, make_params, of, submit


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Engine:
    return Engine({TINY.name: runner}.__getitem__, FragileDevice())


def ends(frames: list[Frame], job_id: str) -> list[str]:
    """How a job ended, by frame name; exactly one is right."""
    return [
        type(frame).__name__
        for frame in frames
        if isinstance(frame, Finished | Failed | Cancelled) and frame.job_id == job_id
    ]


def failure(frames: list[Frame], job_id: str) -> Failed:
    (failed,) = of(frames, job_id, Failed)
    assert isinstance(failed, Failed)
    return failed


def test_a_request_ends_once_with_progress_of_every_step(engine: Engine) -> None:
    submit(engine, "a", make_params(num_inference_steps=3))
    frames = drain(engine)
    names = [type(frame).__name__ for frame in frames]
    assert names == ["Started", "Progress", "Progress", "Progress", "Picture", "Finished"]
    progress = [frame for frame in frames if isinstance(frame, Progress)]
    assert [(frame.step, frame.num_steps) for frame in progress] == [(1, 3), (2, 3), (3, 3)]
    assert progress[-1].eta_s == 0
    assert progress[0].eta_s is not None
    assert progress[0].eta_s > 0


def test_equal_requests_share_their_steps(engine: Engine, runner: FakeRunner) -> None:
    for name in "abc":
        submit(engine, name, make_params(num_inference_steps=50))
    drain(engine)
    assert any(len(step) > 1 for step in runner.steps)


def test_cancel_takes_effect_before_the_next_step(engine: Engine, runner: FakeRunner) -> None:
    submit(engine, "a", make_params(num_inference_steps=50))
    frames = engine.step() + engine.step()
    count = len(runner.steps)
    engine.abort(Cancel("a", 1))
    frames += drain(engine)
    assert len(runner.steps) == count
    (cancelled,) = of(frames, "a", Cancelled)
    assert isinstance(cancelled, Cancelled)
    assert cancelled.step == count
    assert ends(frames, "a") == ["Cancelled"]
    assert engine.scheduler.running == 0


def test_cancel_while_decoding_ends_the_request(engine: Engine, runner: FakeRunner) -> None:
    runner.hold_decodes = True
    submit(engine, "a", make_params(num_inference_steps=1))
    frames = engine.step(wait=False) + engine.step(wait=False)
    assert runner.held
    engine.abort(Cancel("a", 1))
    runner.held[0].done = True
    frames += drain(engine)
    assert ends(frames, "a") == ["Cancelled"]
    assert not of(frames, "a", Picture)


def test_cancel_of_another_epoch_is_ignored(engine: Engine) -> None:
    submit(engine, "a", make_params())
    engine.abort(Cancel("a", 2))
    assert ends(drain(engine), "a") == ["Finished"]


def test_steps_go_on_while_a_picture_is_decoded(engine: Engine, runner: FakeRunner) -> None:
    runner.hold_decodes = True
    submit(engine, "short", make_params(num_inference_steps=1))
    engine.step(wait=False)
    submit(engine, "long", make_params(num_inference_steps=20))
    for _ in range(10):
        engine.step(wait=False)
    assert runner.steps.count(["long"]) >= 9
    runner.hold_decodes = False
    for held in runner.held:
        held.done = True
    assert ends(drain(engine), "short") == ["Finished"]


def test_small_pictures_are_decoded_first_and_a_backlog_pauses_steps(engine: Engine, runner: FakeRunner) -> None:
    runner.hold_decodes = True
    for index in range(6):
        submit(engine, f"big{index}", make_params(num_inference_steps=1, width=64, height=64))
        engine.step(wait=False)
    submit(engine, "small", make_params(num_inference_steps=1, width=8, height=8))
    for _ in range(20):
        engine.step(wait=False)
    assert len(runner.held) == 2
    assert len(runner.steps) < 7, "steps went on although pictures pile up"
    order: list[str] = []
    for _ in range(40):
        for held in runner.held:
            held.done = True
        order += [frame.job_id for frame in engine.step(wait=False) if isinstance(frame, Finished)]
    assert len(order) == 7
    assert order.index("small") < 6


def test_a_start_deadline_fails_what_has_not_started(runner: FakeRunner) -> None:
    now = [100.0]
    engine = Engine({TINY.name: runner}.__getitem__, FragileDevice(), clock=lambda: now[0])
    submit(engine, "late", make_params(), start_within_s=1.0)
    submit(engine, "early", make_params(), start_within_s=3.0)
    submit(engine, "patient", make_params())
    now[0] += 2
    frames = drain(engine)
    assert failure(frames, "late").kind == "deadline"
    assert ends(frames, "early") == ends(frames, "patient") == ["Finished"]


def test_what_is_left_of_a_deadline_counts_from_now(runner: FakeRunner) -> None:
    engine = Engine({TINY.name: runner}.__getitem__, FragileDevice(), clock=lambda: 100.0)
    submit(engine, "a", make_params(), age_s=7.0, done_within_s=3.0)
    (request,) = engine._requests.values()
    assert request.done_by == 103.0
    assert ends(drain(engine), "a") == ["Finished"]


def test_what_a_request_has_waited_elsewhere_counts(engine: Engine) -> None:
    submit(engine, "new", make_params())
    submit(engine, "old", make_params(), age_s=100.0)
    arrivals = {request.job_id: request.arrival for request in engine._requests.values()}
    assert 90 < arrivals["new"] - arrivals["old"] < 110


def test_steps_are_launched_ahead_and_reported_when_the_device_has_done_them(runner: FakeRunner) -> None:
    device = SlowDevice()
    engine = Engine({TINY.name: runner}.__getitem__, device)
    done: list[int] = []
    """Steps that had been waited for when one was launched."""
    runner.on_denoise = lambda rows: done.append(sum(mark.is_awaited for mark in device.marks))
    submit(engine, "a", make_params(num_inference_steps=50))
    reported = [sum(isinstance(frame, Progress) for frame in engine.step()) for _ in range(5)]
    assert reported == [0, 1, 1, 1, 1]
    assert done == [0, 0, 1, 2, 3]


def test_a_prompt_is_waited_for_only_where_nothing_else_can_go_on(
    engine: Engine, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(engine, "running", make_params(num_inference_steps=50))
    engine.step()
    slow = Awaited(lambda: Admission(object(), (torch.zeros(1, 1),)))
    monkeypatch.setattr(runner, "admit", lambda request: slow)
    submit(engine, "new", make_params(num_inference_steps=50))
    together = tuple(row for request in engine._requests.values() for row in request.rows)
    monkeypatch.setattr(engine.scheduler, "plan", lambda now: together)
    for _ in range(3):
        engine.step()
        assert runner.steps[-1] == ["running"]
    assert not slow.is_awaited
    engine.abort(Cancel("running", 1))
    monkeypatch.setattr(engine.scheduler, "plan", lambda now: together[1:])
    while not slow.is_awaited:
        engine.step()
    assert runner.steps[-1] == ["new"], "it steps in the call that waited"


def test_a_decode_is_waited_for_only_where_there_is_nothing_to_tell(
    engine: Engine, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Awaited(lambda: Decoded(torch.full((2, 3, 3), 200, dtype=torch.uint8), torch.tensor(True)))
    monkeypatch.setattr(runner, "decode", lambda row: slow)
    submit(engine, "a", make_params(num_inference_steps=1))
    while not slow.is_awaited:
        assert engine.has_work
        told = engine.step()
        assert not (told and slow.is_awaited)


def test_an_exception_in_a_step_fails_only_the_request_that_causes_it(engine: Engine, runner: FakeRunner) -> None:
    def poison(rows: Sequence[Row]) -> None:
        if any(row.request.job_id == "bad" for row in rows):
            raise IndexError("secret internals /path/to/file.py")

    runner.on_denoise = poison
    for name in ("a", "bad", "b"):
        submit(engine, name, make_params(num_inference_steps=8))
    frames = drain(engine)
    assert failure(frames, "bad").kind == "model_error"
    assert "secret" not in failure(frames, "bad").message
    assert ends(frames, "a") == ends(frames, "b") == ["Finished"]
    assert [f.step for f in of(frames, "a", Progress)] == list(range(1, 9))  # type: ignore[union-attr]


def test_an_exception_while_encoding_fails_that_request(engine: Engine, runner: FakeRunner) -> None:
    def poison(request: object) -> None:
        if getattr(request, "job_id", "") == "bad":
            raise ValueError("tokenizer")

    runner.on_admit = poison
    submit(engine, "bad", make_params())
    submit(engine, "a", make_params())
    frames = drain(engine)
    assert failure(frames, "bad").kind == "model_error"
    assert ends(frames, "a") == ["Finished"]


def test_an_exception_while_decoding_fails_that_request(engine: Engine, runner: FakeRunner) -> None:
    def poison(row: Row) -> None:
        if row.request.job_id == "bad":
            raise RuntimeError("vae")

    runner.on_decode = poison
    submit(engine, "bad", make_params(num_images=2))
    submit(engine, "a", make_params())
    frames = drain(engine)
    assert ends(frames, "bad") == ["Failed"]
    assert ends(frames, "a") == ["Finished"]


def test_latents_that_are_not_numbers_fail_that_request(engine: Engine, runner: FakeRunner) -> None:
    def poison(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.request.job_id == "bad":
                row.latents = torch.tensor([[float("nan")]])

    runner.on_denoise = poison
    submit(engine, "bad", make_params(seed=41))
    submit(engine, "a", make_params())
    frames = drain(engine)
    assert failure(frames, "bad").kind == "model_error"
    assert "41" in failure(frames, "bad").message
    assert ends(frames, "a") == ["Finished"]


@pytest.mark.parametrize(
    ("files", "loc", "word"),
    [(["a"], ("loras", 0, "path"), "the adapter"), (["a", "b"], ("loras",), "one of the adapters")],
)
def test_latents_that_are_not_numbers_are_laid_to_the_adapters(
    engine: Engine, runner: FakeRunner, files: list[str], loc: tuple[str | int, ...], word: str
) -> None:
    def poison(rows: Sequence[Row]) -> None:
        for row in rows:
            row.latents = torch.tensor([[float("inf")]])

    runner.on_denoise = poison
    submit(engine, "bad", make_params(adapters=tuple(Adapter(f"{name}.safetensors") for name in files)))
    failed = failure(drain(engine), "bad")
    assert (failed.kind, tuple(failed.loc)) == ("input_error", loc)
    assert word in failed.message


def test_out_of_memory_splits_the_step_and_everyone_finishes(engine: Engine, runner: FakeRunner) -> None:
    def small_memory(rows: Sequence[Row]) -> None:
        if len(rows) > 2:
            raise MemoryError

    runner.on_denoise = small_memory
    for index in range(8):
        submit(engine, f"r{index}", make_params(num_inference_steps=4))
    frames = drain(engine)
    assert all(ends(frames, f"r{index}") == ["Finished"] for index in range(8))
    assert max(len(step) for step in runner.steps) == 2
    assert engine.scheduler.token_limit is not None


def test_a_picture_that_does_not_fit_alone_fails(engine: Engine, runner: FakeRunner) -> None:
    def no_memory(rows: Sequence[Row]) -> None:
        if rows[0].request.job_id == "big":
            raise MemoryError

    runner.on_denoise = no_memory
    submit(engine, "big", make_params())
    submit(engine, "a", make_params())
    frames = drain(engine)
    assert failure(frames, "big").kind == "out_of_memory"
    assert ends(frames, "a") == ["Finished"]


def test_a_decode_without_memory_is_tried_again_alone(engine: Engine, runner: FakeRunner) -> None:
    tries: list[str] = []

    def small_memory(row: Row) -> None:
        tries.append(row.request.job_id)
        if len(tries) == 1:
            raise MemoryError

    runner.on_decode = small_memory
    for name in "ab":
        submit(engine, name, make_params(num_inference_steps=1))
    frames = drain(engine)
    assert sorted(tries) == ["a", "a", "b"]
    assert ends(frames, "a") == ends(frames, "b") == ["Finished"]


def test_a_picture_whose_decode_never_fits_fails_alone(engine: Engine, runner: FakeRunner) -> None:
    def no_memory(row: Row) -> None:
        if row.request.job_id == "big":
            raise MemoryError

    runner.on_decode = no_memory
    submit(engine, "big", make_params(num_inference_steps=1))
    submit(engine, "a", make_params(num_inference_steps=1))
    frames = drain(engine)
    assert failure(frames, "big").kind == "out_of_memory"
    assert ends(frames, "a") == ["Finished"]


def test_a_sticky_device_error_ends_the_engine(engine: Engine, runner: FakeRunner) -> None:
    def broken(rows: Sequence[Row]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner.on_denoise = broken
    submit(engine, "a", make_params())
    with pytest.raises(RuntimeError, match="CUDA error"):
        drain(engine)


@pytest.mark.parametrize(
    ("changes", "word"), [({"width": 129}, "4096"), ({"model": "other"}, "other"), ({"width": 0}, "width")]
)
def test_what_cannot_be_done_fails_at_once(engine: Engine, changes: dict[str, object], word: str) -> None:
    values = make_params().to_dict() | changes

    engine.add_request(Submit("a", 1, values))
    assert word in failure(engine.step(), "a").message
    assert not engine.has_work


GREY = InputPicture(8, 8, 3, bytes(192))


def test_strength_counts_only_the_steps_that_are_drawn(engine: Engine, runner: FakeRunner) -> None:
    params = make_params(num_inference_steps=8, conditions=(ImageToImage(0, 0.5),))
    submit(engine, "a", params, pictures=[GREY.to_dict()])
    progress = [frame for frame in drain(engine) if isinstance(frame, Progress)]
    assert [(frame.step, frame.num_steps) for frame in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(runner.steps) == 4


def test_admission_sees_the_pictures_and_the_end_lets_go_of_them(engine: Engine, runner: FakeRunner) -> None:
    seen: list[Request] = []
    runner.on_admit = lambda request: (seen.append(request), None)[1] if request.pictures == (GREY,) else None
    submit(engine, "a", make_params(conditions=(ImageToImage(0, 0.5),)), pictures=[GREY.to_dict()])
    drain(engine)
    assert [request.pictures for request in seen] == [()]


def test_a_fault_of_one_field_says_which(engine: Engine, runner: FakeRunner) -> None:
    def refuse(request: Request) -> None:
        raise RequestError("the mask is empty", ("mask_url",))

    runner.on_admit = refuse
    submit(engine, "a", make_params())
    failed = failure(drain(engine), "a")
    assert (failed.kind, failed.message, failed.loc) == ("input_error", "the mask is empty", ("mask_url",))


@pytest.mark.parametrize(
    ("pictures", "word"),
    [([], "needs 1 pictures"), ([{"width": 2, "height": 2, "channels": 3, "pixels": b""}], "bytes"), ([{}], "arg")],
)
def test_a_request_without_its_pictures_fails_at_once(
    engine: Engine, pictures: list[dict[str, object]], word: str
) -> None:
    submit(engine, "a", make_params(conditions=(ImageToImage(0, 0.5),)), pictures=pictures)
    assert word in failure(drain(engine), "a").message


def test_a_condition_that_the_model_cannot_follow_is_refused(engine: Engine) -> None:
    submit(engine, "a", make_params(conditions=(Fill(0, 0),)), pictures=[GREY.to_dict()])
    assert failure(drain(engine), "a").message == "a dev model cannot do fill"


@pytest.mark.parametrize(
    ("threshold", "probability", "flagged"), [(0.5, 0.5, True), (0.5, 0.49, False), (None, 1.0, False)]
)
def test_unsafe_pictures_are_black(
    engine: Engine, runner: FakeRunner, threshold: float | None, probability: float, flagged: bool
) -> None:
    runner.unsafe_probability = probability
    submit(engine, "a", make_params(safety_threshold=threshold))
    (picture,) = of(drain(engine), "a", Picture)
    assert isinstance(picture, Picture)
    assert picture.has_nsfw_concept is flagged
    assert set(picture.pixels) == ({0} if flagged else {200})
    assert len(picture.pixels) == 2 * 3 * 3


def test_previews_come_every_so_many_steps(engine: Engine) -> None:
    submit(engine, "a", make_params(num_inference_steps=7, preview_every=3))
    submit(engine, "b", make_params(num_inference_steps=7))
    frames = drain(engine)
    assert [frame.step for frame in of(frames, "a", Preview)] == [3, 6]  # type: ignore[union-attr]
    assert not of(frames, "b", Preview)


def test_a_preview_that_cannot_be_made_fails_that_request(
    engine: Engine, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(row: Row) -> None:
        raise ValueError("no")

    monkeypatch.setattr(runner, "preview", refuse)
    submit(engine, "a", make_params(preview_every=1))
    submit(engine, "b", make_params())
    frames = drain(engine)
    assert ends(frames, "a") == ["Failed"]
    assert ends(frames, "b") == ["Finished"]


def test_timings_add_up(runner: FakeRunner) -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    engine = Engine({TINY.name: runner}.__getitem__, FragileDevice(), clock=tick)
    submit(engine, "a", make_params(num_images=2))
    (finished,) = of(drain(engine), "a", Finished)
    assert isinstance(finished, Finished)
    timings = finished.timings
    assert min(timings.values()) >= 0
    assert timings["encode"] + timings["denoise"] <= timings["inference"]


def test_a_step_is_shared_out_by_tokens(runner: FakeRunner) -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    engine = Engine({TINY.name: runner}.__getitem__, FragileDevice(), clock=tick)
    submit(engine, "small", make_params(num_inference_steps=8))
    submit(engine, "large", make_params(num_inference_steps=8, num_images=3))
    frames = drain(engine)
    (small,), (large,) = of(frames, "small", Finished), of(frames, "large", Finished)
    assert isinstance(small, Finished)
    assert isinstance(large, Finished)
    own = [end.timings["device"] - end.timings["decode"] - end.timings["safety"] for end in (small, large)]
    assert sum(own) == pytest.approx(engine.steps * 0.001)  # every step took one tick, and is counted once
    assert own[1] > 2 * own[0] > 0


def test_an_engine_with_nothing_to_do_says_so(engine: Engine) -> None:
    assert not engine.has_work
    assert engine.step() == []
    submit(engine, "a", make_params())
    assert engine.has_work
    frames = drain(engine)
    assert of(frames, "a", Started)
    assert not engine.has_work
    assert (engine.running, engine.waiting) == (0, 0)


def test_the_real_runner_never_waits_for_a_decode(components: object) -> None:
    """With wait=False a step returns although a picture is being decoded beside it."""
    from models.accelerator import CpuAccelerator
    from pipelines.families.flux1.runner import FluxRunner

    engine = make_engine(FluxRunner(components, CpuAccelerator()))  # type: ignore[arg-type]
    submit(engine, "a", make_params(num_inference_steps=1, width=256, height=256))
    frames: list[Frame] = []
    calls = 0
    while engine.has_work:
        frames += engine.step(wait=False)
        calls += 1
    assert ends(frames, "a") == ["Finished"]
    assert calls > 3
