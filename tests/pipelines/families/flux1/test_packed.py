"""The packed forward against separate forwards of the stock module."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor

from pipelines.families.flux1.packed import modulation_rows, modulation_width, packed_forward
from pipelines.families.flux1.sampling import position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.attention import grouped_attention, runs
from pipelines.ops.compute import Compute
from tests.pipelines.conftest import amplify
from tests.pipelines.families.flux1.buckets import moved_by_company

HEIGHT_WIDTH = st.tuples(st.integers(1, 9), st.integers(1, 9))


@dataclass(frozen=True)
class Sample:
    """One picture's inputs as the stock module takes them."""

    height: int
    width: int
    latents: Tensor
    prompt: Tensor
    pooled: Tensor
    timestep: float
    guidance: float

    @property
    def ids(self) -> Tensor:
        return position_ids(len(self.prompt), self.height, self.width, torch.float32)


def make_transformer(guidance_embeds: bool = True, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    amplify(transformer, 0.2)
    return transformer.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def transformers() -> dict[torch.dtype, FluxTransformer2DModel]:
    return {dtype: make_transformer(dtype=dtype) for dtype in (torch.float32, torch.float64)}


samples = st.lists(
    st.tuples(
        HEIGHT_WIDTH,
        st.integers(1, 8),
        st.floats(0.0, 1.0, width=32),
        st.floats(0.0, 20.0, width=32),
        st.integers(0, 2**31),
    ),
    min_size=1,
    max_size=6,
)


def make_sample(
    size: tuple[int, int], text_tokens: int, timestep: float, guidance: float, seed: int, dtype: torch.dtype
) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    height, width = size
    return Sample(height, width, noise(height * width, 16), noise(text_tokens, 24), noise(16), timestep, guidance)


def stock(transformer: FluxTransformer2DModel, sample: Sample) -> Tensor:
    text_tokens, dtype = len(sample.prompt), sample.latents.dtype
    output: Tensor = transformer(
        hidden_states=sample.latents[None],
        encoder_hidden_states=sample.prompt[None],
        pooled_projections=sample.pooled[None],
        timestep=torch.tensor([sample.timestep], dtype=dtype),
        guidance=torch.tensor([sample.guidance]) if transformer.config.guidance_embeds else None,
        txt_ids=sample.ids[:text_tokens],
        img_ids=sample.ids[text_tokens:],
        return_dict=False,
    )[0][0]
    return output


PLAINLY = Compute()


def packed(transformer: FluxTransformer2DModel, samples: list[Sample], compute: Compute = PLAINLY) -> list[Tensor]:
    ropes, modulations = [], []
    for sample in samples:
        cos, sin = transformer.pos_embed(sample.ids)
        ropes.append(torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None])
        dtype = sample.latents.dtype
        timestep = torch.tensor([sample.timestep], dtype=dtype) * 1000
        guidance = torch.tensor([sample.guidance]).to(dtype) * 1000
        times = (timestep, guidance) if transformer.config.guidance_embeds else (timestep,)
        modulations.append(modulation_rows(transformer, transformer.time_text_embed(*times, sample.pooled[None])))
    lengths = tuple(len(sample.latents) for sample in samples)
    output = packed_forward(
        transformer,
        PackLayout(tuple(len(sample.prompt) for sample in samples), lengths, torch.cat(ropes)),
        torch.cat([sample.latents for sample in samples]),
        torch.cat([transformer.context_embedder(sample.prompt) for sample in samples]),
        torch.cat(modulations),
        compute,
    )
    return list(output.split(lengths))


def worst(transformer: FluxTransformer2DModel, samples: list[Sample]) -> float:
    together = packed(transformer, samples)
    alone = [stock(transformer, sample) for sample in samples]
    assert max(float(a.abs().max()) for a in alone) > 0.05
    return max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@settings(max_examples=40, deadline=None)
@given(mix=samples)
def test_any_mix_equals_separate_stock_forwards(
    transformers: dict[torch.dtype, FluxTransformer2DModel], dtype: torch.dtype, tolerance: float, mix: list
) -> None:
    with torch.inference_mode():
        assert worst(transformers[dtype], [make_sample(*values, dtype) for values in mix]) <= tolerance


@settings(max_examples=20, deadline=None)
@given(mix=samples.map(lambda mix: mix[:1]))
def test_one_picture_equals_the_stock_forward_bit_for_bit(
    transformers: dict[torch.dtype, FluxTransformer2DModel], mix: list
) -> None:
    with torch.inference_mode():
        assert worst(transformers[torch.float32], [make_sample(*mix[0], torch.float32)]) == 0.0


MIX = [
    ((4, 6), 7, 0.9, 3.5, 1),
    ((3, 3), 5, 0.1, 1.0, 2),
    ((4, 6), 7, 0.4, 7.0, 3),
]


def test_a_model_without_guidance_embedding() -> None:
    transformer = make_transformer(guidance_embeds=False)
    with torch.inference_mode():
        assert worst(transformer, [make_sample(*values, torch.float32) for values in MIX]) <= 1e-5


def test_lora_layers_take_part() -> None:
    transformer = make_transformer()
    plain = copy.deepcopy(transformer)
    transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_out.0", "proj_mlp"]))
    mix = [make_sample(*values, torch.float32) for values in MIX]
    with torch.inference_mode():
        assert worst(transformer, mix) <= 1e-5
        changed = packed(transformer, mix)[0] - packed(plain, mix)[0]
    assert float(changed.abs().max()) > 1e-3


def test_fused_projections_take_part() -> None:
    transformer = make_transformer()
    transformer.fuse_qkv_projections()
    assert transformer.transformer_blocks[0].attn.fused_projections
    with torch.inference_mode():
        assert worst(transformer, [make_sample(*values, torch.float32) for values in MIX]) <= 1e-5


def test_modulation_width_counts_every_adaln() -> None:
    transformer = make_transformer()
    dim = transformer.inner_dim
    assert modulation_width(transformer) == 2 * 12 * dim + 2 * 3 * dim + 2 * dim
    with torch.inference_mode():
        assert modulation_rows(transformer, torch.zeros(3, dim)).shape == (3, modulation_width(transformer))


def test_runs_group_equal_neighbours_only() -> None:
    assert runs([3, 3, 5, 3]) == [(2, 3), (1, 5), (1, 3)]
    assert runs([]) == []


def test_packs_of_any_size_leave_a_picture_as_it_is() -> None:
    transformer = make_transformer()
    moved = moved_by_company(transformer, PLAINLY, side=4, text_tokens=5, packs=range(27, 90, 7))
    assert len(moved) == 9
    assert max(moved.values()) <= 1e-5
    # The measure itself sees it when company matters.
    swayed = Compute(lambda q, k, v, lengths: grouped_attention(q, k, v, lengths) * len(lengths))
    assert min(moved_by_company(transformer, swayed, 4, 5, range(27, 90, 7)).values()) > 1e-3
