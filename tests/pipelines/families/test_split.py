"""Steps shared out over two processes, against the same steps in one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.accelerator import CpuAccelerator, DeviceLostError
from models.components import FluxComponents
from models.errors import LoadError
from models.registry import TINY, TINY_KLEIN, TINY_SDXL
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.engine.request import RequestError
from pipelines.families.layout import PackLayout
from pipelines.families.pool import ModelPool
from pipelines.families.split import LEAST_RECORDED, Split, Splittable, Team, form_of
from pipelines.ops.compute import Compute
from pipelines.ops.exchanges import Exchanges, Form
from pipelines.ops.ranks import Ranks
from pipelines.ops.shares import Shares
from pipelines.protocol.frames import Failed, Finished, Log
from pipelines.worker.team import Followers
from tests.pipelines.driving import drain, make_params, of, submit
from tests.server.api_server import eventually

PACKS = st.lists(st.tuples(st.integers(2, 9), st.integers(2, 40)), min_size=1, max_size=5)
"""Text and image tokens of each picture."""


EXCHANGES = 9
"""Of both models: two for each of four blocks, and one at the end."""

ROOM = 400
"""Tokens of a step that the other process has memory for."""

SHORT_OF_MEMORY = f"""
import os, sys
from pipelines.families import split
from pipelines.worker.__main__ import main

computed = split.Split.compute_share

def short_of_memory(self, exchanges, layout, tensors):
    made, tokens = exchanges.make, sum(layout.joint_lengths)
    if tokens > {ROOM}:
        left = [tokens % {EXCHANGES}]
        def make(rows):
            left[0] -= 1
            if left[0] < 0:
                exchanges.make = made
                raise MemoryError if tokens < 5_000 else ZeroDivisionError
            return made(rows)
        exchanges.make = make
    return computed(self, exchanges, layout, tensors)

split.Split.compute_share = short_of_memory
os._exit(main(sys.argv[1:]))
"""
"""Fails in the midst of what is too large for it: as many exchanges from the beginning as there are tokens, modulo."""


class Pair:
    """This process and another, with the two tiny models that can be shared out."""

    def __init__(self) -> None:
        models = [part for spec in (TINY, TINY_KLEIN) for part in ("--model", spec.name)]
        self.losses: list[tuple[str, int]] = []
        self.logs: list[Log] = []
        followers = Followers(
            ("cpu", "cpu"),
            ["--device", "cpu,cpu", *models],
            lambda *loss: self.losses.append(loss),
            self.logs.append,
            (sys.executable, "-c", SHORT_OF_MEMORY),
        )
        accelerator = CpuAccelerator()
        ranks = Ranks(0, 2, followers.store, accelerator.device)
        self.team = Team(ranks, followers.tell, followers.settle, followers.hear)
        self.pool = ModelPool([TINY, TINY_KLEIN], accelerator, team=self.team)
        self.pool.load_all()

    def kill(self) -> None:
        for child in psutil.Process().children():
            if "--rank" in child.cmdline():
                child.kill()

    def split(self, name: str) -> Split:
        runner = self.pool.runner(name)
        assert isinstance(runner, Splittable)
        return runner.split


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.kill()
    dist.destroy_process_group()


def a_pack(lengths: list[tuple[int, int]], channels: int, width: int, modulation: int, half: int) -> tuple[Tensor, ...]:
    texts, images = (sum(each) for each in zip(*lengths, strict=True))
    generator = torch.Generator().manual_seed(texts * 100 + images)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    angles = noise(texts + images, 1, half)
    return (
        noise(images, channels),
        noise(texts, width),
        noise(len(lengths), modulation),
        torch.complex(angles.cos(), angles.sin()),
    )


class Step:
    """One step of one of the models over random numbers, shared out or whole."""

    def __init__(self, pair: Pair, name: str, lengths: list[tuple[int, int]]) -> None:
        self.split, config = pair.split(name), pair.pool.runner(name).components.modules["transformer"].config
        width = config.num_attention_heads * config.attention_head_dim
        vectors = 17 if name == TINY_KLEIN.name else (config.num_layers * 12 + config.num_single_layers * 3 + 2)
        *self.inputs, rope = a_pack(lengths, config.in_channels, width, vectors * width, config.attention_head_dim // 2)
        self.layout = PackLayout(tuple(t for t, _ in lengths), tuple(n for _, n in lengths), rope)

    @torch.inference_mode()
    def shared_out(self) -> Tensor:
        assert self.split.takes(self.layout)
        return self.split.lead(self.layout, *self.inputs)

    @torch.inference_mode()
    def whole(self) -> Tensor:
        return self.split.forward(self.layout, *self.inputs, Compute())

    def is_right(self) -> bool:
        return torch.allclose(self.shared_out(), self.whole(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [TINY.name, TINY_KLEIN.name])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=PACKS)
def test_a_step_over_two_processes_equals_one(pair: Pair, name: str, lengths: list[tuple[int, int]]) -> None:
    step = Step(pair, name, lengths)
    torch.testing.assert_close(step.shared_out(), step.whole(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", range(EXCHANGES))
def test_a_process_short_of_memory_fails_the_step_and_both_can_do_the_next(pair: Pair, before: int) -> None:
    """Whichever of the two it is, and before whichever exchange."""
    tokens = 45 * EXCHANGES + before
    for name in (TINY.name, TINY_KLEIN.name):
        with pytest.raises(MemoryError):
            Step(pair, name, [(5, tokens - 5)]).shared_out()
        assert Step(pair, name, [(5, 20), (3, 7)]).is_right()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchanges, "make", failing_once(before))
        with pytest.raises(MemoryError):
            Step(pair, TINY.name, [(5, 20), (3, 7)]).shared_out()
    assert Step(pair, TINY.name, [(5, 20), (3, 7)]).is_right()
    assert not pair.losses


def failing_once(before: int) -> Callable[[Exchanges, Tensor], Tensor]:
    """`Exchanges.make`, out of memory once, after so many."""
    made, left = Exchanges.make, [before]

    def make(exchanges: Exchanges, rows: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] == -1:
            raise MemoryError
        return made(exchanges, rows)

    return make


def test_an_error_of_the_other_process_is_the_steps_and_not_its_end(pair: Pair) -> None:
    with pytest.raises(RequestError, match=r"^the model failed on this request \(ZeroDivisionError\)$"):
        Step(pair, TINY.name, [(8, 5_000)]).shared_out()
    assert Step(pair, TINY.name, [(5, 20)]).is_right()


def test_weights_that_one_device_has_no_room_for_fail_the_step_alone(pair: Pair) -> None:
    step = Step(pair, TINY.name, [(5, 20)])
    step.split.group = TINY.name + FLOAT8
    try:
        with pytest.raises(RequestError, match="one of the devices has no room"):
            step.shared_out()
    finally:
        step.split.group = TINY.name
    assert step.is_right()


def test_requests_that_do_not_fit_together_share_less_and_one_that_does_not_fit_at_all_fails_alone(pair: Pair) -> None:
    engine = Engine(pair.pool.runner, CpuAccelerator(), choose_acceleration=pair.pool.choose_acceleration)
    for name in "abcd":
        submit(engine, name, make_params(width=128, height=128))
    submit(engine, "large", make_params(width=256, height=256, num_inference_steps=1))
    frames = drain(engine)
    assert engine.scheduler.token_limit, "they began together"
    assert all(of(frames, name, Finished) for name in "abcd")
    (failed,) = of(frames, "large", Failed)
    assert isinstance(failed, Failed)
    assert failed.kind == "out_of_memory"
    assert not pair.losses


def test_every_token_is_somebodys_once() -> None:
    shares = Shares((3, 8), (7, 2), 2)
    joint = torch.arange(20)
    assert sorted([*shares.joint_of(joint, 0).tolist(), *shares.joint_of(joint, 1).tolist()]) == list(range(20))
    assert shares.joint_totals == [1 + 4 + 3 + 1, 2 + 4 + 4 + 1]


def test_a_picture_too_small_to_be_shared_is_drawn_by_the_first_alone(pair: Pair) -> None:
    layout = PackLayout((8,), (1,), torch.ones(9, 1, 8, dtype=torch.complex64))
    assert not pair.split(TINY.name).takes(layout)


def form_of_tiny(pair: Pair) -> Form:
    return form_of(pair.pool.runner(TINY.name).components.modules["transformer"], torch.float32)


def test_small_steps_that_are_replayed_stay_on_one_device(pair: Pair) -> None:
    split = Split(form_of_tiny(pair), Compute(), pair.split(TINY.name).forward, is_recorded=True)
    split.join(pair.team, TINY.name)
    small = PackLayout((512,), (1024,), torch.ones(1536, 1, 8, dtype=torch.complex64))
    large = PackLayout((512,), (LEAST_RECORDED,), torch.ones(512 + LEAST_RECORDED, 1, 8, dtype=torch.complex64))
    assert not split.takes(small)
    assert split.takes(large)


def test_heads_that_cannot_be_shared_evenly_are_refused(pair: Pair) -> None:
    form = replace(form_of_tiny(pair), heads=3)
    split = Split(form, Compute(), pair.split(TINY.name).forward, is_recorded=False)
    with pytest.raises(LoadError, match="has 3 heads, which 2 devices cannot share evenly; use --parallel 1"):
        split.join(pair.team, "odd")


def test_other_families_are_refused(pair: Pair) -> None:
    pool = ModelPool([TINY_SDXL], CpuAccelerator(), team=Team(pair.team.ranks))
    with pytest.raises(LoadError, match="the family sdxl cannot be shared out; leave --parallel out"):
        pool.runner(TINY_SDXL.name)


def test_a_death_in_the_midst_ends_the_process_and_not_the_request(pair: Pair) -> None:
    """Last: it kills the other process."""
    pair.kill()
    components = pair.pool.runner(TINY.name).components
    assert isinstance(components, FluxComponents)
    layout = PackLayout((4,), (8,), torch.ones(12, 1, 8, dtype=torch.complex64))
    width, channels = 32, components.transformer.config.in_channels
    with pytest.raises(DeviceLostError) as lost:
        pair.split(TINY.name).lead(layout, torch.zeros(8, channels), torch.zeros(4, width), torch.zeros(1, 32 * width))
    assert CpuAccelerator().is_fatal(lost.value)
    # The thread that misses it may be a moment later than the step that broke.
    eventually(lambda: pair.losses, within_s=30)
    assert pair.losses == [("the process that shares steps on cpu ended (status -9)", -9)]
