"""Recorded steps: the same pictures, and only where every step launches the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.loading import load
from models.registry import TINY
from models.tuning import Tuning
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.ops import replay as module
from pipelines.ops.attention import grouped_attention, offsets, varlen_attention
from pipelines.ops.compute import Compute
from pipelines.ops.replay import Replay
from pipelines.protocol.conditions import InputPicture, Reference
from pipelines.protocol.frames import Finished
from tests.pipelines.driving import drain, make_params, of, pictures, submit
from tests.pipelines.families.flux2.kleins import klein
from tests.pipelines.families.flux2.kleins import params as klein_params


class Recorder(CpuAccelerator):
    """A processor that keeps work as a GPU keeps launches: what is kept reads and writes the same tensors again."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        result = torch.full_like(work(), torch.nan)

        def again() -> None:
            self.replayed += 1
            result.copy_(work())

        return result, again


def drawn(accelerator: CpuAccelerator, is_on: bool, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    runner = FluxRunner(load(TINY, accelerator), accelerator, Tuning(replay=is_on))
    engine = Engine(lambda name: runner, accelerator)
    for index, (width, height) in enumerate(sizes):
        submit(engine, str(index), make_params(width=width, height=height, seed=index, num_inference_steps=4))
    frames = drain(engine)
    assert len(of(frames, "0", Finished)) == 1
    return [pictures(frames, str(index))[0] for index in range(len(sizes))]


@pytest.mark.parametrize("sizes", [[(64, 64)], [(64, 96), (96, 64), (64, 64)]])
def test_a_replayed_step_draws_the_same(sizes: list[tuple[int, int]]) -> None:
    """64 x 96 and 96 x 64 have as many tokens, but stand elsewhere: what is kept must read where."""
    recorder = Recorder()
    replayed, launched = drawn(recorder, True, sizes), drawn(CpuAccelerator(), False, sizes)
    assert recorder.replayed > 0
    assert all(np.array_equal(a, b) for a, b in zip(replayed, launched, strict=True))


def test_requests_of_one_layout_share_a_recording() -> None:
    recorder = Recorder()
    runner = FluxRunner(load(TINY, recorder), recorder, Tuning(replay=True))
    for width, height in ((64, 96), (96, 64)):
        engine = Engine(lambda _: runner, recorder)
        submit(engine, "a", make_params(width=width, height=height, seed=0))
        (plain,) = drawn(CpuAccelerator(), False, [(width, height)])
        assert np.array_equal(pictures(drain(engine), "a")[0], plain)
    assert recorder.recorded == 1


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_the_first_time_is_not_recorded_and_old_recordings_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    recorder = Recorder()
    replay = Replay(recorder, print)
    for _ in range(2):
        for key in range(3):
            assert float(replay.run(key, 1, (torch.tensor(float(key)),), double)) == 2 * key
    assert recorder.recorded == 3
    assert float(replay.run(0, 1, (torch.tensor(5.0),), double)) == 10
    assert recorder.recorded == 4
    assert float(replay.run(2, 1, (torch.tensor(7.0),), double)) == 14
    assert recorder.recorded == 4


def test_a_recording_holds_what_it_reads_besides_its_inputs() -> None:
    """Offsets are cached for the last layouts only: a recording outlives that, and knows their address."""
    recorder = Recorder()
    replay, compute = Replay(recorder, print), Compute(attend=varlen_attention)
    for _ in range(2):
        read = compute.kept((3, 4), recorder.device)
        replay.run("a", 1, (torch.ones(1),), double, read)
    assert isinstance(read, Tensor)
    assert read.tolist() == [0, 3, 7]
    still = weakref.ref(read)
    del read
    offsets.cache_clear()
    assert still() is not None
    replay._kept.clear()
    assert still() is None


def test_both_families_let_a_recording_hold_its_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the only attention is one that needs none: here it is said to."""
    monkeypatch.setattr("pipelines.ops.compute.READS_OFFSETS", (grouped_attention,))
    recorder = Recorder()
    runners = {
        "flux": FluxRunner(load(TINY, recorder), recorder, Tuning(replay=True)),
        "flux2": Flux2Runner(klein(), recorder, Tuning(replay=True)),
    }
    for name, runner in runners.items():
        engine = Engine(lambda _, runner=runner: runner, recorder)  # type: ignore[misc]
        submit(
            engine, "a", make_params(num_inference_steps=3) if name == "flux" else klein_params(num_inference_steps=3)
        )
        assert pictures(drain(engine), "a")
        assert runner._replay is not None
        (recording,) = runner._replay._kept.values()
        assert isinstance(recording.keeps, Tensor), name


def test_other_attention_reads_its_inputs_alone() -> None:
    assert Compute().kept((3, 4), torch.device("cpu")) is None


def test_large_steps_are_launched_one_by_one() -> None:
    recorder = Recorder()
    replay = Replay(recorder, print)
    for _ in range(3):
        replay.run("a", module.RECORDED_TOKENS + 1, (torch.ones(1),), double)
    assert recorder.recorded == 0


def test_a_device_that_cannot_says_so_once_and_draws_on() -> None:
    class Broken(CpuAccelerator):
        def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            raise RuntimeError("CUDA error: not permitted\nmore")

    notes: list[str] = []
    replay = Replay(Broken(), notes.append)
    assert [float(replay.run("a", 1, (torch.tensor(3.0),), double)) for _ in range(4)] == [6.0] * 4
    assert notes == ["steps are launched kernel by kernel: RuntimeError: CUDA error: not permitted"]


def test_flux2_is_replayed_with_its_references() -> None:
    recorder = Recorder()
    runner = Flux2Runner(klein(), recorder, Tuning(replay=True))
    seen = InputPicture(32, 48, 3, np.random.default_rng(0).integers(0, 256, 32 * 48 * 3, np.uint8).tobytes()).to_dict()
    for conditions, given in (((), []), ((Reference((0,)),), [seen])):
        made = []
        for each, accelerator in ((runner, recorder), (Flux2Runner(klein(), CpuAccelerator()), CpuAccelerator())):
            alone = Engine(lambda _, runner=each: runner, accelerator)
            submit(alone, "a", klein_params(conditions=conditions), pictures=given)
            made.append(pictures(drain(alone), "a")[0])
        assert np.array_equal(*made)
    assert recorder.recorded == 2
