"""The packed forward against separate forwards of the stock module."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.flux2.architectures import ARCHITECTURES
from models.fusion import fuse_flux2
from models.registry import TINY_KLEIN
from pipelines.families.flow import rotations
from pipelines.families.flux2.packed import modulation_rows, packed_forward
from pipelines.families.flux2.sampling import Sides, position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from tests.pipelines.conftest import amplify

CONFIG = ARCHITECTURES[TINY_KLEIN.source].transformer


@dataclass(frozen=True)
class Sample:
    """One picture's inputs as the stock module takes them."""

    latents: Tensor
    prompt: Tensor
    ids: Tensor
    timestep: float
    guidance: float


def make_transformer(dtype: torch.dtype = torch.float32, guidance_embeds: bool = False) -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(**CONFIG | {"guidance_embeds": guidance_embeds})
    amplify(transformer, 0.2)
    return transformer.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def transformers() -> dict[torch.dtype, Flux2Transformer2DModel]:
    return {dtype: make_transformer(dtype) for dtype in (torch.float32, torch.float64)}


SIDES = st.tuples(st.integers(1, 8), st.integers(1, 8))
SAMPLES = st.lists(
    st.tuples(
        SIDES,
        st.lists(SIDES, max_size=3),
        st.integers(1, 8),
        st.floats(0.0, 1.0, width=32),
        st.floats(0.0, 20.0, width=32),
        st.integers(0, 2**31),
    ),
    min_size=1,
    max_size=6,
)


def make_sample(
    drawn: Sides, references: list[Sides], text_tokens: int, timestep: float, guidance: float, seed: int,
    dtype: torch.dtype,
) -> Sample:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    ids = position_ids(text_tokens, drawn, references)
    latents = torch.randn((len(ids) - text_tokens, CONFIG["in_channels"]), generator=generator, dtype=dtype)
    prompt = torch.randn((text_tokens, CONFIG["joint_attention_dim"]), generator=generator, dtype=dtype)
    return Sample(latents, prompt, ids, timestep, guidance)


def stock(transformer: Flux2Transformer2DModel, sample: Sample) -> Tensor:
    text_tokens, dtype = len(sample.prompt), sample.latents.dtype
    output: Tensor = transformer(
        hidden_states=sample.latents[None],
        encoder_hidden_states=sample.prompt[None],
        timestep=torch.tensor([sample.timestep], dtype=dtype),
        guidance=torch.tensor([sample.guidance]) if transformer.config.guidance_embeds else None,
        txt_ids=sample.ids[:text_tokens],
        img_ids=sample.ids[text_tokens:],
        return_dict=False,
    )[0][0]
    return output


def packed(transformer: Flux2Transformer2DModel, samples: list[Sample]) -> list[Tensor]:
    modulations = []
    for sample in samples:
        times = torch.tensor([sample.timestep], dtype=sample.latents.dtype) * 1000
        guidance = torch.tensor([sample.guidance]).to(sample.latents.dtype) * 1000
        modulations.append(modulation_rows(transformer, transformer.time_guidance_embed(times, guidance)))
    lengths = tuple(len(sample.latents) for sample in samples)
    ropes = torch.cat([rotations(transformer.pos_embed, sample.ids) for sample in samples])
    output = packed_forward(
        transformer,
        PackLayout(tuple(len(sample.prompt) for sample in samples), lengths, ropes),
        torch.cat([sample.latents for sample in samples]),
        torch.cat([transformer.context_embedder(sample.prompt) for sample in samples]),
        torch.cat(modulations),
        Compute(),
    )
    return list(output.split(lengths))


def worst(transformer: Flux2Transformer2DModel, samples: list[Sample]) -> float:
    together = packed(transformer, samples)
    alone = [stock(transformer, sample) for sample in samples]
    assert max(float(each.abs().max()) for each in alone) > 0.05
    return max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@settings(max_examples=25, deadline=None)
@given(mix=SAMPLES)
def test_any_mix_equals_separate_stock_forwards(
    transformers: dict[torch.dtype, Flux2Transformer2DModel], dtype: torch.dtype, tolerance: float, mix: list
) -> None:
    with torch.inference_mode():
        assert worst(transformers[dtype], [make_sample(*values, dtype) for values in mix]) <= tolerance


@settings(max_examples=15, deadline=None)
@given(mix=SAMPLES)
def test_one_picture_equals_the_stock_forward_bit_for_bit(
    transformers: dict[torch.dtype, Flux2Transformer2DModel], mix: list
) -> None:
    with torch.inference_mode():
        assert worst(transformers[torch.float32], [make_sample(*mix[0], torch.float32)]) == 0.0


MIX = [((4, 6), [], 7, 0.9, 3.5, 1), ((3, 3), [(2, 5)], 5, 0.1, 1.0, 2), ((4, 6), [(1, 1), (4, 2)], 7, 0.4, 7.0, 3)]


def test_a_model_with_guidance_embedding() -> None:
    transformer = make_transformer(guidance_embeds=True)
    with torch.inference_mode():
        assert worst(transformer, [make_sample(*values, torch.float32) for values in MIX]) <= 1e-5


def test_joined_projections_take_part() -> None:
    transformer = make_transformer()
    fuse_flux2(transformer, qkv=True, mlp=True)
    assert transformer.transformer_blocks[0].attn.fused_projections
    with torch.inference_mode():
        assert worst(transformer, [make_sample(*values, torch.float32) for values in MIX]) <= 1e-5
