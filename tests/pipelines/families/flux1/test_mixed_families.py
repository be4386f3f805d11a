"""Rows of different families in one step, against each of them alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from models.components import FluxComponents
from pipelines.engine.engine import Engine
from pipelines.engine.request import Request
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import Condition, ImageToImage, Inpaint, InputPicture, Reference
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Preview
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures
from tests.pipelines.families.flux1.families import ask, mask, ours, picture, run_on, variant_of

TOLERANCE = 1
"""Levels of 255 that company may move a pixel by on a CPU, as in test_parity."""

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
}  # fmt: skip


@pytest.fixture(scope="module")
def kontext(components: FluxComponents) -> FluxRunner:
    """Of all tiny checkpoints the one that takes the most conditions."""
    return run_on(variant_of(components, "kontext"))


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
    rows = [row for name in JOBS for row in admitted(kontext, name).rows]
    kontext.denoise(rows)
    for row in rows:
        (twin,) = [twin for twin in admitted(kontext, row.request.job_id).rows if twin.index == row.index]
        kontext.denoise([twin])
        assert row.latents is not None
        assert twin.latents is not None
        assert torch.allclose(row.latents, twin.latents, rtol=0, atol=1e-5)


def admitted(runner: FluxRunner, name: str) -> Request:
    params, given = JOBS[name]
    request = Request(name, 1, params, "group", runner.limits.tokens(params), 0.0, pictures=tuple(given))
    admission = runner.admit(request).result()
    request.conditioning = admission.conditioning
    for row, latents, state in zip(request.rows, admission.latents, admission.states, strict=True):
        row.latents, row.state = latents, state
    return request


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


def _changes(params: GenerationParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__dataclass_fields__}
