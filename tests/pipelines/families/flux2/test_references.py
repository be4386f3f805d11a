"""References that are passed once ([klein] KV), against diffusers' own Flux2KleinKVPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2Transformer2DModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import TINY_KLEIN_KV
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.flow import rotations
from pipelines.families.flux2.packed import modulation_rows, packed_forward
from pipelines.families.flux2.references import Seen, looking, seen_once
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.families.flux2.sampling import Sides, position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.attention import grouped_attention
from pipelines.ops.compute import Compute
from pipelines.protocol.conditions import Adapter, InputPicture, Reference
from pipelines.protocol.frames import Cancel, Cancelled, Finished
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_params, of, pictures, submit

TOLERANCE = 1
"""Levels of 255: the stock pipeline computes references and picture in one product, which rounds otherwise than two."""


@cache
def components() -> Flux2Components:
    loaded: Flux2Components = load(TINY_KLEIN_KV, CpuAccelerator())
    for part in ("transformer", "vae", "text_encoder"):
        amplify(loaded.modules[part], 0.2)
    generator = torch.Generator().manual_seed(1)
    loaded.vae.bn.running_mean.normal_(0.0, 0.5, generator=generator)
    loaded.vae.bn.running_var.uniform_(0.3, 2.0, generator=generator)
    return loaded


def new_engine(runner: Flux2Runner | None = None) -> Engine:
    kept = runner or Flux2Runner(components(), CpuAccelerator())
    return Engine(lambda name: kept, CpuAccelerator())


def params(references: int = 0, **changes: object) -> GenerationParams:
    conditions = (Reference(tuple(range(references))),) if references else ()
    base = {"model": TINY_KLEIN_KV.name, "guidance_scale": 1.0, "conditions": conditions}
    return make_params(**(base | changes))


def images(*sizes: tuple[int, int]) -> tuple[Image.Image, ...]:
    rng = np.random.default_rng(0)
    return tuple(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes)


def give(to: Engine, job: str, wanted: GenerationParams, seen: Sequence[Image.Image] = ()) -> None:
    sent = [InputPicture(*image.size, 3, image.tobytes()).to_dict() for image in seen]
    submit(to, job, wanted, pictures=sent)


def draw(
    wanted: GenerationParams, seen: Sequence[Image.Image] = (), runner: Flux2Runner | None = None
) -> list[NDArray[np.uint8]]:
    alone = new_engine(runner)
    give(alone, "a", wanted, seen)
    frames = drain(alone)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")


@torch.inference_mode()
def theirs(
    wanted: GenerationParams, seen: Sequence[Image.Image] = (), lora: tuple[Path, float] | None = None
) -> NDArray[np.uint8]:
    pipeline = components().pipeline()
    assert isinstance(pipeline, Flux2KleinKVPipeline)
    if lora is not None:
        pipeline.load_lora_weights(lora[0].parent, weight_name=lora[0].name, adapter_name="a")
        pipeline.set_adapters(["a"], [lora[1]])
    try:
        drawn = pipeline(
            image=list(seen) or None,
            prompt=wanted.prompt,
            height=wanted.height,
            width=wanted.width,
            num_inference_steps=wanted.num_inference_steps,
            max_sequence_length=24,
            generator=torch.Generator().manual_seed(wanted.seed),
        )
    finally:
        if lora is not None:
            pipeline.unload_lora_weights()
    return np.asarray(drawn.images[0])


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    "sizes",
    [((64, 64),), ((75, 91), (64, 80)), *(tuple((64 + 8 * i, 96 - 4 * i) for i in range(n)) for n in (4, 8))],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_picture_equals_diffusers(sizes: tuple[tuple[int, int], ...], steps: int) -> None:
    wanted, seen = params(len(sizes), num_inference_steps=steps), images(*sizes)
    (ours,) = draw(wanted, seen)
    assert distance(ours, theirs(wanted, seen)) <= TOLERANCE
    assert np.std(ours) > 20, "a flat picture would prove nothing"


def test_they_count_and_are_not_what_other_checkpoints_make_of_them() -> None:
    wanted, seen = params(1), images((64, 64))
    (ours,) = draw(wanted, seen)
    every_step = Flux2Runner(replace(components(), passes_references_once=False), CpuAccelerator())
    assert distance(ours, draw(params())[0]) > 20
    assert distance(ours, draw(wanted, seen, every_step)[0]) > 20


def test_without_references_it_is_any_klein() -> None:
    plain = Flux2Runner(replace(components(), passes_references_once=False), CpuAccelerator())
    (ours,) = draw(params())
    assert np.array_equal(ours, theirs(params()))
    assert np.array_equal(ours, draw(params(), runner=plain)[0])


def test_a_lora_changes_what_is_seen_as_in_diffusers(tmp_path: Path) -> None:
    file = save_diffusers(
        random_lora(components().transformer, 3, seed=1, among=("transformer_blocks.", "single_")),
        tmp_path / "a.safetensors",
    )
    wanted, seen = params(1, adapters=(Adapter(file.name, 0.7),)), images((64, 64))
    adapting = Flux2Runner(components(), CpuAccelerator(), adapters=AdapterCache(tmp_path, 1 << 30))
    (ours,) = draw(wanted, seen, adapting)
    assert distance(ours, theirs(wanted, seen, (file, 0.7))) <= TOLERANCE
    assert distance(ours, draw(replace(wanted, adapters=()), seen)[0]) > 20


@pytest.mark.parametrize("count", [1, 2])
def test_they_are_computed_once_a_request(count: int) -> None:
    passed: list[int] = []

    def note(module: object, inputs: tuple[Tensor], output: object) -> None:
        passed.append(len(inputs[0]))

    handle = components().transformer.x_embedder.register_forward_hook(note)
    try:
        draw(params(1, num_images=count), images((64, 80)))
    finally:
        handle.remove()
    drawn, references = 4 * 6, 10 * 8
    assert sum(passed) == references + count * 4 * drawn


def test_what_is_kept_goes_with_the_last_step() -> None:
    busy = new_engine()
    give(busy, "a", params(1), images((64, 64)))
    held: list[bool] = []

    def look(step: int) -> None:
        requests = list(busy._requests.values())
        held.append(any(row.state is not None and row.state.seen for r in requests for row in r.rows))  # type: ignore[attr-defined]

    drain(busy, look)
    assert any(held)
    assert not held[-1]


def test_the_tokens_of_a_step_are_predicted_on_the_average() -> None:
    limits = Flux2Runner(components(), CpuAccelerator()).limits
    assert limits.tokens(params(1, width=64, height=64)) == 64 + 16 + 24
    assert limits.tokens(params(2, width=64, height=64, num_inference_steps=1)) == 64 + 2 * 64 + 24


def test_neighbours_of_any_kind_do_not_change_a_picture() -> None:
    wanted, seen = params(1, num_inference_steps=5), images((70, 80))
    (alone,) = draw(wanted, seen)
    busy = new_engine()
    give(busy, "s0", params(width=64, height=64, num_inference_steps=6, seed=1))
    give(busy, "s1", params(2, width=16, height=16, num_inference_steps=8, seed=2), images((64, 64), (80, 75)))
    give(busy, "s2", params(num_images=2, num_inference_steps=9, seed=3))

    def meddle(step: int) -> None:
        if step == 3:
            give(busy, "a", wanted, seen)
        if step == 5:
            busy.abort(Cancel("s1", 1))

    frames = drain(busy, meddle)
    assert of(frames, "s1", Cancelled)
    assert distance(pictures(frames, "a")[0], alone) <= TOLERANCE


MIX: list[tuple[Sides, list[Sides], int, float]] = [
    ((4, 6), [], 7, 0.9),
    ((4, 6), [], 7, 0.3),
    ((3, 3), [(2, 5)], 5, 0.1),
    ((4, 6), [(1, 1), (4, 2)], 7, 0.4),
    ((2, 2), [], 3, 0.5),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_mixed_pack_equals_separate_stock_forwards(dtype: torch.dtype, tolerance: float) -> None:
    """In the first step, which the stock module computes with the references, and in later ones."""
    transformer = Flux2Transformer2DModel(**ARCHITECTURES[TINY_KLEIN_KV.source].transformer).eval()
    amplify(transformer, 0.2)
    replace(components(), transformer=transformer).pipeline()  # puts in processors that know of what is kept
    transformer.to(dtype)
    with torch.inference_mode():
        worst = max(
            float((ours - other).abs().max())
            for ours, others in zip(_packed(transformer, dtype), _stock(transformer, dtype), strict=True)
            for other in others
        )
    assert worst <= tolerance


def _inputs(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor, Tensor, int]]:
    """Of every picture: drawn latents, references, prompt, positions, text tokens."""
    generator, config = torch.Generator().manual_seed(4), components().transformer.config
    made = []
    for drawn, references, text, _ in MIX:
        ids = position_ids(text, drawn, references)
        count = drawn[0] * drawn[1]
        latents = torch.randn((len(ids) - text, config.in_channels), generator=generator, dtype=dtype)
        prompt = torch.randn((text, config.joint_attention_dim), generator=generator, dtype=dtype)
        made.append((latents[:count], latents[count:], prompt, ids, text))
    return made


def _stock(transformer: Flux2Transformer2DModel, dtype: torch.dtype) -> list[list[Tensor]]:
    """Of every picture: the velocity of a step that computes its references, and of one that finds them kept."""
    outputs = []
    for (drawn, references, prompt, ids, text), (*_, time) in zip(_inputs(dtype), MIX, strict=True):
        given = {
            "encoder_hidden_states": prompt[None],
            "timestep": torch.tensor([time], dtype=dtype),
            "txt_ids": ids[:text],
            "return_dict": False,
        }
        own = ids[text : text + len(drawn)]
        if not len(references):
            outputs.append([transformer(hidden_states=drawn[None], img_ids=own, **given)[0][0]])
            continue
        first, cache = transformer(
            hidden_states=torch.cat((references, drawn))[None],
            img_ids=torch.cat((ids[text + len(drawn) :], own)),
            kv_cache_mode="extract",
            num_ref_tokens=len(references),
            **given,
        )
        later = transformer(hidden_states=drawn[None], img_ids=own, kv_cache=cache, kv_cache_mode="cached", **given)[0]
        outputs.append([first[0], later[0]])
    return outputs


def _packed(transformer: Flux2Transformer2DModel, dtype: torch.dtype) -> list[Tensor]:
    def modulation(time: float) -> Tensor:
        times = torch.tensor([time], dtype=dtype) * 1000
        return modulation_rows(transformer, transformer.time_guidance_embed(times, None))

    inputs, seen, ropes = _inputs(dtype), [], []
    for drawn, references, _, ids, text in inputs:
        rope, end = rotations(transformer.pos_embed, ids), text + len(drawn)
        ropes.append(rope[:end])
        kept: Seen = ()
        if len(references):
            kept = seen_once(transformer, references, rope[end:], modulation(0.0), (), grouped_attention)
        seen.append(kept)
    texts, lengths = tuple(text for *_, text in inputs), tuple(len(drawn) for drawn, *_ in inputs)
    output = packed_forward(
        transformer,
        PackLayout(texts, lengths, torch.cat(ropes)),
        torch.cat([drawn for drawn, *_ in inputs]),
        torch.cat([transformer.context_embedder(prompt) for _, _, prompt, _, _ in inputs]),
        torch.cat([modulation(time) for *_, time in MIX]),
        Compute(looking(grouped_attention, texts, seen)),
    )
    return list(output.split(lengths))
