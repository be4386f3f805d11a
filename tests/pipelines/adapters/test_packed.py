"""The packed forward with a LoRA for every picture against stock forwards of models that carry it in their weights."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from models.adapters.reading import AdapterWeights
from models.float8 import to_float8
from models.fusion import fuse
from models.quantization import is_insensitive
from pipelines.adapters.adapter import FittedAdapter, Uses, fit
from pipelines.adapters.binding import bound, everywhere
from pipelines.adapters.linears import with_adapters
from pipelines.families.flux1.packed import modulation_rows, packed_forward
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from tests.pipelines.adapters.loras import Parts, random_lora
from tests.pipelines.families.flux1.test_packed import MIX, Sample, make_sample, make_transformer, stock


def fitted(transformer: FluxTransformer2DModel, parts: Parts, dtype: torch.dtype) -> FittedAdapter:
    return fit(AdapterWeights(parts, {}), transformer, torch.nn.Module(), torch.device("cpu"), dtype)


def merged(transformer: FluxTransformer2DModel, *loras: tuple[Parts, float]) -> FluxTransformer2DModel:
    """What no server of many adapters can afford: a copy whose weights are changed."""
    own = copy.deepcopy(transformer)
    for parts, scale in loras:
        for name, part in parts.items():
            weight = own.get_submodule(name).weight
            weight += scale * (part.up.to(weight.dtype) @ part.down.to(weight.dtype))
    return own


def packed_with(transformer: FluxTransformer2DModel, samples: list[Sample], uses: list[Uses]) -> list[Tensor]:
    twin = with_adapters(transformer)
    ropes, modulations, texts = [], [], []
    for sample, own in zip(samples, uses, strict=True):
        cos, sin = twin.pos_embed(sample.ids)
        ropes.append(torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None])
        dtype = sample.latents.dtype
        times = (torch.tensor([sample.timestep], dtype=dtype) * 1000, torch.tensor([sample.guidance]).to(dtype) * 1000)
        with bound(everywhere(own)):
            modulations.append(modulation_rows(twin, twin.time_text_embed(*times, sample.pooled[None])))
            texts.append(twin.context_embedder(sample.prompt))
    lengths = tuple(len(sample.latents) for sample in samples)
    layout = PackLayout(tuple(len(s.prompt) for s in samples), lengths, torch.cat(ropes), tuple(uses))
    latents = torch.cat([sample.latents for sample in samples])
    return list(
        packed_forward(twin, layout, latents, torch.cat(texts), torch.cat(modulations), Compute()).split(lengths)
    )


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, as a share of the largest value."""
    assert min(float(b.abs().max()) for b in theirs) > 0.05
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("qkv", "mlp"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_picture_equals_a_stock_forward_of_its_own_merged_model(
    dtype: torch.dtype, tolerance: float, qkv: bool, mlp: bool
) -> None:
    transformer = make_transformer(dtype=dtype)
    samples = [make_sample(*values, dtype) for values in MIX]
    one = random_lora(transformer, 3, 1, among=("",), but="no layer")
    two = random_lora(transformer, 4, 2)
    with torch.inference_mode():
        theirs = [
            stock(merged(transformer, (one, 0.7)), samples[0]),
            stock(transformer, samples[1]),
            stock(merged(transformer, (one, 0.5), (two, -0.4)), samples[2]),
        ]
        plain = stock(transformer, samples[0])
        fuse(transformer, qkv, mlp)
        first, second = fitted(transformer, one, dtype), fitted(transformer, two, dtype)
        ours = packed_with(transformer, samples, [((first, 0.7),), (), ((first, 0.5), (second, -0.4))])
    assert worst(ours, theirs) <= tolerance
    assert float((ours[0] - plain).abs().max()) > 0.05, "the adapter must show"


def test_float8_weights_stay_float8_under_an_adapter() -> None:
    transformer = make_transformer()
    samples = [make_sample(*values, torch.float32) for values in MIX]
    parts = random_lora(transformer, 3, 1)
    with torch.inference_mode():
        exact = stock(merged(transformer, (parts, 3.0)), samples[0])
        plain = stock(transformer, samples[0])
        fuse(transformer, qkv=True, mlp=True)
        to_float8(transformer, is_insensitive)
        adapter = fitted(transformer, parts, torch.float32)
        float8 = packed_with(transformer, samples, [((adapter, 3.0),), (), ()])[0]
    # Rounding the base weights moves a picture far less than the adapter does.
    assert float((float8 - exact).norm() / exact.norm()) < 0.1 < 0.3 < float((plain - exact).norm() / exact.norm())


def test_the_twin_holds_no_weight_of_its_own() -> None:
    transformer = make_transformer()
    own = {tensor.data_ptr() for tensor in transformer.parameters()}
    assert {tensor.data_ptr() for tensor in with_adapters(transformer).parameters()} == own
