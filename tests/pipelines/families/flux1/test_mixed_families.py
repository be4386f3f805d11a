"""Rows of different families in one step, against each of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from models.accelerator import CpuAccelerator, Launched
from models.components import FluxComponents
from models.registry import Variant
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.engine import Engine
from pipelines.engine.request import Request, Row, latents_of
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import (
    Adapter,
    Coarse,
    Condition,
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    InputPicture,
    Redux,
    Reference,
    Refine,
)
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Preview, Progress
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures
from tests.pipelines.families.flux1.families import ask, mask, ours, picture, run_on, tiny_net, tiny_prior, variant_of

TOLERANCE = 1
"""Levels of 255 that company may move a pixel by on a CPU, as in test_parity."""

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

T = TypeVar("T")
Job = tuple[GenerationParams, Sequence[InputPicture]]


def job(*conditions: Condition, given: Sequence[InputPicture] = (), **changes: object) -> Job:
    return make_params(conditions=conditions, **changes), given


JOBS: dict[str, Job] = {
    "text": job(seed=1),
    "from a picture": job(ImageToImage(0, 0.6), given=[picture(64, 64, 1)], seed=2, num_inference_steps=7, width=64),
    "inpainted": job(Inpaint(0, 1, 0.8), given=[picture(48, 32, 2), mask(48, 32, (5, 3, 30, 20), 3)], seed=3),
    "by degrees": job(
        Inpaint(0, 1, 0.9, is_differential=True), given=[picture(32, 32, 3), mask(32, 32, (8, 8, 20, 20), 8)],
        width=32, seed=4, num_images=2,
    ),
    "edited": job(Reference((0,)), given=[picture(40, 48, 4)], width=40, height=48, seed=5, num_inference_steps=3),
    "two references": job(
        Reference((0, 1)), given=[picture(16, 16, 5), picture(16, 16, 6)], width=16, height=16, seed=6
    ),
    "edited in a mask": job(
        Reference((0,)), Inpaint(0, 1, 0.7), given=[picture(24, 24, 7), mask(24, 24, (0, 0, 12, 24))],
        width=24, height=24,
    ),
    "like a picture": job(Redux((0,), "prior", 0.8), given=[picture(9, 9, 8)], seed=8, num_images=2),
    "along edges": job(ControlNet("edges", 0, 0.6, control="canny"), given=[picture(48, 32, 9)], seed=9),
    "along other edges": job(
        ControlNet("edges", 0, 0.3, 0.3, 0.9), ControlNet("lines", 1, 0.5), ImageToImage(0, 0.8),
        given=[picture(32, 32, 10), picture(32, 32, 11)], width=32, seed=10,
    ),
    "coarse at first": job(Coarse(0.5), width=96, height=64, seed=13, num_images=2),
    "large": job(Refine(0.5), width=96, height=64, seed=11),
    "large, like a picture": job(
        Refine(0.5), Redux((0,), "prior"), ImageToImage(0, 0.75), given=[picture(96, 64, 12)], width=96, height=64
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def kontext(components: FluxComponents) -> FluxRunner:
    """Of all tiny checkpoints the one that takes the most conditions."""
    checkpoint = variant_of(components, "kontext")
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, native_pixels=48 * 32))
    return run_on(checkpoint, tiny_prior(), tiny_net("edges"), tiny_net("lines", 2, 1, seed=6))


@pytest.fixture(scope="module")
def alone(kontext: FluxRunner) -> dict[str, list[np.ndarray]]:
    return {name: drawn_together(kontext, [name])[name] for name in JOBS}


def drawn_together(runner: FluxRunner, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    engine = make_engine(runner)
    for name in names:
        ask(engine, name, *JOBS[name])
    frames = drain(engine)
    assert not [frame for frame in frames if isinstance(frame, Failed)]
    return {name: pictures(frames, name) for name in names}


def distance(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> int:
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)


def test_families_in_one_pack_draw_what_each_draws_alone(
    kontext: FluxRunner, alone: dict[str, list[np.ndarray]]
) -> None:
    together = drawn_together(kontext, list(JOBS))
    assert {
        name: distance(together[name], alone[name]) for name in JOBS if distance(together[name], alone[name]) > 1
    } == {}


def test_latents_of_a_mixed_step_equal_the_lone_ones(kontext: FluxRunner) -> None:
    assert_steps_equal_the_lone_ones(kontext, JOBS)


def assert_steps_equal_the_lone_ones(runner: FluxRunner, jobs: Mapping[str, Job]) -> None:
    """Step the rows of all jobs together to their ends, and a twin of each alone: after every step, phases at another
    size included, their latents must be the same to 1e-5. All start together, so steps of all phases are mixed.
    """
    rows = {(name, row.index): row for name in jobs for row in admitted(runner, name, jobs[name]).rows}
    twins = {(name, row.index): row for name in jobs for row in admitted(runner, name, jobs[name]).rows}
    while rows:
        advance(runner, list(rows.values()))
        for key, row in rows.items():
            advance(runner, [twins[key]])
            ours, theirs = latents_of(row), latents_of(twins[key])
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-5), f"{key}, step {row.step_index}"
            twins[key].latents = ours  # every step is judged by itself
        rows = {key: row for key, row in rows.items() if row.steps_left}


def advance(runner: FluxRunner, rows: Sequence[Row]) -> None:
    """One step, and what has to be done before the next."""
    runner.denoise(rows)
    for row in rows:
        row.steps_left -= 1
        if row.pending is not None:
            row.latents, row.pending = row.pending.result(), None


def admitted(runner: FluxRunner, name: str, job: Job) -> Request:
    params, given = job
    request = Request(name, 1, params, "group", runner.limits.tokens(params), 0.0, pictures=tuple(given))
    admission = runner.admit(request).result()
    request.conditioning = admission.conditioning
    for row, latents, state in zip(request.rows, admission.latents, admission.states, strict=True):
        row.latents, row.state = latents, state
    return request


USED = (Adapter("one.safetensors", 0.7),)
OTHER = (Adapter("two.safetensors", 1.1), Adapter("one.safetensors", 0.2))
WIDE, HIGH = picture(64, 32, 1), picture(24, 40, 2)
WIDE_SHAPE: dict[str, object] = {"width": 64, "height": 32, "seed": 21}
HIGH_SHAPE: dict[str, object] = {"width": 24, "height": 40, "seed": 22, "num_inference_steps": 6, "num_images": 2}
HOLES = [WIDE, mask(64, 32, (8, 4, 40, 30), 4)], [HIGH, mask(24, 40, (0, 10, 24, 40))]
MORE_CHANNELS: dict[Variant, tuple[int, dict[str, Job]]] = {
    "fill": (
        16 + 4 * 4 * 4,
        {
            "wide": job(Fill(0, 1), given=HOLES[0], **WIDE_SHAPE),
            "high": job(Fill(0, 1), given=HOLES[1], **HIGH_SHAPE),
            "wide, adapted": job(Fill(0, 1), given=HOLES[0], adapters=USED, **WIDE_SHAPE),
            "high, adapted": job(Fill(0, 1), given=HOLES[1], adapters=OTHER, **HIGH_SHAPE),
            "after a picture": job(Fill(0, 1), Redux((2,), "prior", 0.8), given=[*HOLES[1], WIDE], **HIGH_SHAPE),
        },
    ),
    "canny": (
        16,
        {
            "wide": job(Control("canny", 0), given=[WIDE], **WIDE_SHAPE),
            "high": job(Control("canny", 0, is_prepared=True), given=[HIGH], **HIGH_SHAPE),
            "high, adapted": job(Control("canny", 0), given=[HIGH], adapters=OTHER, **HIGH_SHAPE),
            "from a picture": job(Control("canny", 0), ImageToImage(1, 0.6), given=[WIDE, HIGH], **WIDE_SHAPE),
            "from a picture, adapted": job(
                ImageToImage(0, 0.8), Control("canny", 1), given=[HIGH, WIDE], adapters=USED, **HIGH_SHAPE
            ),
            "after a picture": job(Control("canny", 0), Redux((1,), "prior"), given=[WIDE, HIGH], **WIDE_SHAPE),
        },
    ),
    "kontext": (
        0,
        {name: JOBS[name] for name in ("text", "along edges", "coarse at first", "large")}
        | {
            f"{name}, adapted": (replace(JOBS[name][0], adapters=adapters), JOBS[name][1])
            for name, adapters in (
                ("text", USED), ("from a picture", OTHER), ("inpainted", USED), ("by degrees", OTHER), ("edited", USED),
                ("two references", OTHER), ("edited in a mask", USED), ("like a picture", OTHER),
                ("large, like a picture", USED),
            )
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", MORE_CHANNELS)
def test_rows_of_more_channels_and_with_adapters_step_as_they_do_alone(
    components: FluxComponents, tmp_path: Path, variant: Variant
) -> None:
    channels, jobs = MORE_CHANNELS[variant]
    checkpoint = variant_of(components, variant, channels)
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, native_pixels=48 * 32))
    for seed, name in enumerate(("one", "two")):
        parts = random_lora(checkpoint.transformer, 3 + seed, seed, std=0.1, among=("",), but="no layer")
        save_diffusers(parts, tmp_path / f"{name}.safetensors")
    runner = run_on(
        checkpoint, tiny_prior(), tiny_net("edges"), tiny_net("lines", 2, 1, seed=6),
        adapters=AdapterCache(tmp_path, 1 << 30),
    )  # fmt: skip
    assert_steps_equal_the_lone_ones(runner, jobs)


def test_joining_and_leaving_half_way_changes_nothing(kontext: FluxRunner, alone: dict[str, list[np.ndarray]]) -> None:
    engine = make_engine(kontext)
    names = list(JOBS)
    ask(engine, "long", make_params(num_inference_steps=16), [])

    def between(step: int) -> None:
        if step < len(names):
            ask(engine, names[step], *JOBS[names[step]])
        if step == 4:
            engine.abort(Cancel("by degrees", 1))

    frames = drain(engine, between)
    assert of(frames, "by degrees", Cancelled)
    assert of(frames, "long", Finished)
    for name in names:
        if name != "by degrees":
            assert distance(pictures(frames, name), alone[name]) <= TOLERANCE


def test_a_picture_between_two_phases_stands_still_and_its_neighbours_do_not(kontext: FluxRunner) -> None:
    engine = make_engine(kontext)
    ask(engine, "large", *JOBS["large"])
    ask(engine, "long", make_params(num_inference_steps=40, width=16, height=16), [])
    frames = drain(engine)
    progress = [frame.step for frame in frames if isinstance(frame, Progress) and frame.job_id == "large"]
    assert progress == [1, 2, 3, 4, 5, 6]
    assert of(frames, "long", Finished)


def test_a_cancel_between_two_phases_ends_the_request(kontext: FluxRunner) -> None:
    engine = make_engine(kontext)
    ask(engine, "large", *JOBS["large"])
    while engine.has_work and not any(row.pending for row in _rows(engine)):
        engine.step()
    engine.abort(Cancel("large", 1))
    frames = drain(engine)
    assert of(frames, "large", Cancelled)
    assert not of(frames, "large", Finished)


def test_a_fault_between_two_phases_fails_its_request_only(
    kontext: FluxRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise ValueError("no")

    monkeypatch.setattr("pipelines.families.flux1.runner.enlarged", broken)
    engine = make_engine(kontext)
    ask(engine, "large", *JOBS["large"])
    ask(engine, "text", *JOBS["text"])
    frames = drain(engine)
    assert of(frames, "large", Failed)
    assert of(frames, "text", Finished)


def test_a_lack_of_memory_between_two_phases_steps_nobody_twice(components: FluxComponents) -> None:
    class Full(CpuAccelerator):
        """Launches like CUDA, in the caller's thread, and has no room for a second phase."""

        def launch(self, purpose: str, work: Callable[[], T], waits: bool = True) -> Launched[T]:
            if purpose == "vae" and not self.is_late:
                self.is_late = True
                raise MemoryError
            return super().launch(purpose, work, waits)

        is_late = False

    small = replace(components, spec=replace(components.spec, native_pixels=48 * 32))
    alone = ours(FluxRunner(small, CpuAccelerator()), *JOBS["text"])
    engine = make_engine(FluxRunner(small, Full()))
    ask(engine, "large", *JOBS["large"])
    ask(engine, "text", *JOBS["text"])
    frames = drain(engine)
    (failed,) = of(frames, "large", Failed)
    assert isinstance(failed, Failed)
    assert failed.kind == "out_of_memory"
    assert distance(pictures(frames, "text"), [alone]) <= TOLERANCE


def test_skipped_steps_and_all_families_go_together(kontext: FluxRunner) -> None:
    engine = make_engine(kontext)
    for name, (params, given) in JOBS.items():
        ask(engine, name, make_params(**(_changes(params) | {"acceleration": "high"})), given)
    frames = drain(engine)
    assert not [frame for frame in frames if isinstance(frame, Failed)]
    assert all(of(frames, name, Finished) for name in JOBS)


def _rows(engine: Engine) -> list[Row]:
    return [row for request in engine._requests.values() for row in request.rows]


def test_a_neighbour_that_is_not_a_number_harms_nobody(kontext: FluxRunner, alone: dict[str, list[np.ndarray]]) -> None:
    engine = make_engine(kontext)
    ask(engine, "inpainted", *JOBS["inpainted"])
    ask(engine, "edited", *JOBS["edited"])
    while engine.steps == 0:
        engine.step()
    (broken,) = [request for request in engine._requests.values() if request.job_id == "edited"]
    assert broken.rows[0].latents is not None
    broken.rows[0].latents = broken.rows[0].latents * float("nan")
    frames = drain(engine)
    (failed,) = of(frames, "edited", Failed)
    assert isinstance(failed, Failed)
    assert "not numbers" in failed.message
    assert distance(pictures(frames, "inpainted"), alone["inpainted"]) <= TOLERANCE


def test_a_picture_of_a_colour_channel_too_few_is_read_as_grey(kontext: FluxRunner) -> None:
    grey = mask(48, 32, (10, 10, 20, 20), 4)
    rgb = InputPicture(48, 32, 3, np.repeat(np.frombuffer(grey.pixels, np.uint8), 3).tobytes())
    params = make_params(conditions=(ImageToImage(0, 0.5),))
    assert np.array_equal(ours(kontext, params, [grey]), ours(kontext, params, [rgb]))


def test_every_picture_of_an_edited_request_has_its_own_seed(kontext: FluxRunner) -> None:
    params, given = JOBS["from a picture"]
    engine: Engine = make_engine(kontext)
    ask(engine, "two", make_params(**(_changes(params) | {"num_images": 2})), given)
    ask(engine, "second", make_params(**(_changes(params) | {"seed": params.seed + 1})), given)
    frames = drain(engine)
    assert distance(pictures(frames, "two")[1:], pictures(frames, "second")) <= TOLERANCE


def test_previews_of_an_edited_picture_have_its_size(kontext: FluxRunner) -> None:
    params, given = JOBS["edited"]
    engine = make_engine(kontext)
    ask(engine, "a", make_params(**(_changes(params) | {"preview_every": 1})), given)
    previews = [frame for frame in drain(engine) if isinstance(frame, Preview)]
    assert {(frame.width, frame.height) for frame in previews} == {(10, 12)}


def test_previews_stop_between_two_phases_and_grow(kontext: FluxRunner) -> None:
    params, given = JOBS["large"]
    engine = make_engine(kontext)
    ask(engine, "a", make_params(**(_changes(params) | {"preview_every": 1})), given)
    previews = [(frame.step, frame.width) for frame in drain(engine) if isinstance(frame, Preview)]
    assert previews == [(1, 12), (2, 12), (3, 12), (5, 24)]


def _changes(params: GenerationParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__dataclass_fields__}
