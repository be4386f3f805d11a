"""FLUX.3 in the engine against diffusers' own modular pipeline, and against itself in company."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.streaming import stream_blocks
from pipelines.engine.engine import Engine
from pipelines.families.flux3.runner import Flux3Runner
from pipelines.protocol.conditions import Inpaint, InputPicture, Reference
from pipelines.protocol.frames import Failed, Finished, Preview
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, of, pictures, submit
from tests.pipelines.families.flux3.tinies import engine, params, runner, theirs, tiny

TOLERANCE = 1


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def sent(images: tuple[Image.Image, ...]) -> list[dict[str, object]]:
    return [InputPicture(*each.size, 3, each.tobytes()).to_dict() for each in images]


def draw(wanted: GenerationParams, images: tuple[Image.Image, ...] = (), is_base: bool = False) -> NDArray[np.uint8]:
    alone = engine(is_base)
    submit(alone, "a", wanted, pictures=sent(images))
    frames = drain(alone)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")[0]


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("is_base", [False, True], ids=["flow map", "base"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 4.0, "negative_prompt": "a long list of all that should not be there " * 3},
        {"num_inference_steps": 1, "prompt": "", "width": 64},
        {"prompt": "a very long prompt " * 20, "guidance_scale": 0.5},
    ],
    ids=["plain", "guided", "one step", "cut"],
)
def test_a_lone_request_equals_diffusers_bit_for_bit(changes: dict[str, object], is_base: bool) -> None:
    wanted = params(**changes)
    ours = draw(wanted, is_base=is_base)
    assert distance(ours, theirs(wanted, is_base=is_base)) == 0
    assert np.std(ours) > 20, "a flat picture would prove nothing"


@pytest.mark.parametrize("is_base", [False, True], ids=["flow map", "base"])
@pytest.mark.parametrize("sizes", [[(64, 64)], [(51, 70)], [(64, 40), (33, 75), (20, 20)]], ids=str)
def test_references_are_seen_as_diffusers_sees_them(sizes: list[tuple[int, int]], is_base: bool) -> None:
    images = tuple(image(*size, seed=index) for index, size in enumerate(sizes))
    wanted = params(conditions=(Reference(tuple(range(len(images)))),), guidance_scale=2.5)
    assert distance(draw(wanted, images, is_base), theirs(wanted, images, is_base)) == 0
    assert distance(draw(wanted, images, is_base), draw(params(guidance_scale=2.5), is_base=is_base)) > 20


def test_blocks_that_wait_on_the_host_are_run_by_steps_only() -> None:
    """Their two buffers belong to the steps; admission, beside them, would overwrite what one reads."""
    components = copy.deepcopy(tiny(is_base=True))
    entered: list[str] = []
    stream_blocks(components.transformer, CpuAccelerator())
    stream = components.transformer.block_stream
    enter = stream.enter
    stream.enter = lambda block: (entered.append(threading.current_thread().name), enter(block))
    alone = Engine(lambda name: streamed, CpuAccelerator())
    streamed = Flux3Runner(components, CpuAccelerator())
    wanted = params(conditions=(Reference((0,)),), guidance_scale=2.5)
    submit(alone, "a", wanted, pictures=sent((image(64, 64),)))
    assert distance(pictures(drain(alone), "a")[0], draw(wanted, (image(64, 64),), is_base=True)) == 0
    assert set(entered) == {threading.current_thread().name}


@pytest.mark.parametrize("is_base", [False, True], ids=["flow map", "base"])
def test_strangers_joining_and_leaving_do_not_change_a_picture(is_base: bool) -> None:
    wanted = params(num_inference_steps=5, guidance_scale=3.0)
    busy = engine(is_base)
    submit(busy, "a", wanted)
    submit(busy, "b", params(width=64, height=64, seed=3, num_inference_steps=2, prompt="other " * 30))
    looking = params(conditions=(Reference((0, 1)),), seed=4, num_inference_steps=3, guidance_scale=7.0)

    def between(step: int) -> None:
        if step == 2:
            submit(busy, "c", looking, pictures=sent((image(40, 64), image(64, 32, 1))))

    together = drain(busy, between)
    assert distance(pictures(together, "a")[0], draw(wanted, is_base=is_base)) <= TOLERANCE
    alone = draw(looking, (image(40, 64), image(64, 32, 1)), is_base)
    assert distance(pictures(together, "c")[0], alone) <= TOLERANCE


def test_prompt_guidance_and_number_of_steps_count() -> None:
    plain = draw(params(prompt="red"))
    assert distance(plain, draw(params(prompt="blue"))) > 5
    assert distance(plain, draw(params(prompt="red", num_inference_steps=5))) > 5
    assert distance(plain, draw(params(prompt="red", guidance_scale=8.0))) == 0, "a flow map has no guidance"
    guided = [draw(params(prompt="red", guidance_scale=scale), (), True) for scale in (1.0, 8.0)]
    assert distance(*guided) > 5


def test_sizes_between_cells_are_cropped_and_previews_come() -> None:
    shown = engine()
    submit(shown, "a", params(width=51, height=37, preview_every=2))
    frames = drain(shown)
    assert pictures(frames, "a")[0].shape == (37, 51, 3)
    assert of(frames, "a", Preview)


def test_what_it_cannot_do_is_refused() -> None:
    for wanted, words in (
        (params(conditions=(Inpaint(0, 1, 1.0),)), "cannot do inpaint"),
        (params(conditions=(Reference(tuple(range(11))),)), "10 pictures at most"),
        (params(width=2048, height=2048), "can draw"),
    ):
        refused = engine()
        submit(refused, "a", wanted, pictures=sent((image(16, 16),) * 11))
        (failed,) = of(drain(refused), "a", Failed)
        assert isinstance(failed, Failed)
        assert words in failed.message


def test_text_and_references_pass_their_blocks_once_a_request_of_a_base_model() -> None:
    calls = []
    block = runner(True).components.transformer.txt_mode_blocks[0]
    hook = block.ff.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        draw(params(num_inference_steps=6), (), True)
    finally:
        hook.remove()
    assert len(calls) == 1
    assert runner(True).limits.is_guided(params(guidance_scale=4.0))
