"""The packed forward against separate forwards of the stock module."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import Flux3Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.flux3.architectures import ARCHITECTURES
from models.fusion import fuse_flux3
from models.streaming import blocks_of
from pipelines.families.flow import rotations
from pipelines.families.flux3.layout import Layout, Mode
from pipelines.families.flux3.packed import embed_target, embed_time, mode_forward, modulation_rows, packed_forward
from pipelines.families.flux3.sampling import Sides, picture_ids, text_ids
from pipelines.ops.compute import Compute
from pipelines.ops.ops import TRACEABLE
from tests.pipelines.conftest import amplify

CONFIG = ARCHITECTURES["random:tiny-flux3"].transformer
BESIDE: tuple[Mode, ...] = ("txt", "image_cond")


@dataclass(frozen=True)
class Sample:
    """One picture's inputs as the stock module takes them."""

    latents: Tensor
    prompt: Tensor
    references: Tensor
    sides: tuple[Sides, ...]
    timestep: float
    target: float


def make_transformer(is_flow_map: bool, dtype: torch.dtype) -> Flux3Transformer2DModel:
    transformer = Flux3Transformer2DModel(**CONFIG | {"flow_map": is_flow_map})
    amplify(transformer, 0.2)
    transformer.to(dtype)
    for block in blocks_of(transformer):  # as they are loaded
        block.attn.norm_q.float()  # type: ignore[union-attr, operator]
        block.attn.norm_k.float()  # type: ignore[union-attr, operator]
    return transformer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def transformers() -> dict[tuple[bool, torch.dtype], Flux3Transformer2DModel]:
    dtypes = torch.float32, torch.float64
    return {(mapped, dtype): make_transformer(mapped, dtype) for mapped in (False, True) for dtype in dtypes}


SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))
LEVEL = st.floats(0.0, 1.0, width=32)
SAMPLES = st.lists(
    st.tuples(SIDES, st.lists(SIDES, max_size=2), st.integers(1, 8), LEVEL, LEVEL, st.integers(0, 2**31)),
    min_size=1,
    max_size=5,
)


def make_sample(
    drawn: Sides, looked_at: list[Sides], words: int, timestep: float, target: float, seed: int, dtype: torch.dtype
) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def noise(tokens: int, width: int) -> Tensor:
        return torch.randn((tokens, width), generator=generator, dtype=dtype)

    references = sum(height * width for height, width in looked_at)
    return Sample(
        noise(drawn[0] * drawn[1], CONFIG["in_channels"]),
        noise(words, CONFIG["joint_attention_dim"]),
        noise(references, CONFIG["in_channels"]),
        (drawn, *looked_at),
        timestep,
        target,
    )


def stock(transformer: Flux3Transformer2DModel, sample: Sample) -> Tensor:
    ids, drawn, dtype = picture_ids(sample.sides[0], sample.sides[1:]), len(sample.latents), sample.latents.dtype
    looked_at = {"image_cond_hidden_states": sample.references[None], "image_cond_ids": ids[drawn:]}
    mapped = {"target_timestep": torch.tensor([sample.target], dtype=dtype)} if transformer.config.flow_map else {}
    velocity: Tensor = transformer(
        hidden_states=sample.latents[None],
        encoder_hidden_states=sample.prompt[None],
        timestep=torch.tensor([sample.timestep], dtype=dtype),
        img_ids=ids[:drawn],
        txt_ids=text_ids(len(sample.prompt)),
        return_dict=False,
        **(looked_at if len(sample.references) else {}),
        **mapped,
    )[0][0]
    return velocity


def packed(transformer: Flux3Transformer2DModel, samples: list[Sample], compute: Compute) -> tuple[Tensor, ...]:
    dtype, is_map = samples[0].latents.dtype, transformer.config.flow_map
    times = torch.tensor([sample.timestep for sample in samples], dtype=dtype)
    drawn, still = (embed_time(transformer, each, dtype) for each in (times, torch.zeros_like(times)))
    if is_map:
        target = embed_target(transformer, torch.tensor([sample.target for sample in samples], dtype=dtype), dtype)
        drawn, still = drawn + target, still + target
    ids = [(text_ids(len(s.prompt)), picture_ids(s.sides[0], s.sides[1:])) for s in samples]
    rope = torch.cat([rotations(transformer.pos_embed, part) for pair in ids for part in pair])
    layout = Layout(tuple((len(s.prompt), len(s.latents), len(s.references)) for s in samples), rope)
    modulation: dict[Mode, Tensor] = {"image": modulation_rows(transformer, "image", drawn)}
    modulation |= {mode: modulation_rows(transformer, mode, still) for mode in BESIDE}
    beside: dict[Mode, Tensor] = {
        "txt": transformer.context_embedder(torch.cat([s.prompt for s in samples])),
        "image_cond": transformer.x_embedders["image_cond"](torch.cat([s.references for s in samples])),
    }
    if not is_map:
        for mode in BESIDE:
            if layout.of(mode):
                rows = layout.rows_with(mode, modulation[mode])
                parts = layout.of(mode), layout.ropes(mode), rows
                beside[mode] = mode_forward(transformer, mode, beside[mode], *parts, compute)
    latents = torch.cat([s.latents for s in samples])
    predicted = packed_forward(transformer, layout, latents, beside, modulation, compute, is_begun=not is_map)
    return predicted.split(layout.of("image"))


@settings(max_examples=25, deadline=None)
@given(drawn=SAMPLES, is_flow_map=st.booleans(), is_double=st.booleans(), is_traced=st.booleans())
def test_a_pack_equals_separate_stock_forwards(
    transformers: dict[tuple[bool, torch.dtype], Flux3Transformer2DModel],
    drawn: list[tuple[Sides, list[Sides], int, float, float, int]],
    is_flow_map: bool,
    is_double: bool,
    is_traced: bool,
) -> None:
    dtype = torch.float64 if is_double else torch.float32
    transformer = transformers[is_flow_map, dtype]
    samples = [make_sample(*each, dtype) for each in drawn]
    compute = Compute(ops=TRACEABLE) if is_traced else Compute()
    tolerance = 1e-12 if is_double else 1e-5
    for ours, sample in zip(packed(transformer, samples, compute), samples, strict=True):
        theirs = stock(transformer, sample)
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def test_joined_projections_change_rounding_alone() -> None:
    transformer = make_transformer(True, torch.float32)
    samples = [make_sample((4, 3), [(2, 2)], 5, 0.7, 0.3, 1, torch.float32)]
    before = packed(transformer, samples, Compute())[0]
    fuse_flux3(transformer, qkv=True, mlp=True)
    assert torch.allclose(packed(transformer, samples, Compute())[0], before, atol=1e-5)
    assert torch.allclose(stock(transformer, samples[0]), before, atol=1e-5)
