"""Counted memory and arithmetic of FLUX.2 against real modules and PyTorch's own counter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config

from models import flops, memory
from models.accelerator import CpuAccelerator
from models.components import weight_bytes
from models.counts import counts_of
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.flux2.text_encoder import PromptEncoder
from models.loading import load
from models.memory import PRESETS, Preset, need
from models.quantization import is_insensitive
from models.registry import REGISTRY, TINY_KLEIN, TINY_KLEIN_BASE
from pipelines.families.flux2.packed import packed_forward
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from tests.models.test_flops import counted
from tests.models.test_memory import Peak, on_meta, parameters

TINY = ARCHITECTURES[TINY_KLEIN.source]
KLEIN = ARCHITECTURES["random:FLUX.2-klein-4B"]


@pytest.mark.parametrize("name", ["random:tiny-klein", "random:FLUX.2-klein-4B", "random:FLUX.2-klein-9B"])
def test_every_parameter_is_counted(name: str) -> None:
    arch, made = ARCHITECTURES[name], counts_of(ARCHITECTURES[name])
    transformer = on_meta(lambda: Flux2Transformer2DModel(**arch.transformer))
    assert made.transformer == parameters(transformer)
    assert made.vae == parameters(on_meta(lambda: AutoencoderKLFlux2(**arch.vae)))
    assert made.text["text_encoder"] == parameters(on_meta(lambda: PromptEncoder(Qwen3Config(**arch.text))))
    linears = {key: module for key, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    assert sum(made.blocks) == sum(each.weight.numel() for key, each in linears.items() if is_insensitive(key))
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert made.blocks == tuple(
        sum(parameter.numel() for parameter in block.parameters() if parameter.ndim >= 2) for block in blocks
    )


def test_klein_has_the_size_that_it_is_named_after() -> None:
    assert counts_of(KLEIN).transformer / 1e9 == pytest.approx(3.9, rel=0.02)
    assert counts_of(ARCHITECTURES["random:FLUX.2-klein-9B"]).transformer / 1e9 == pytest.approx(9.1, rel=0.02)


def test_a_listed_klein_is_counted_without_a_hub() -> None:
    for name in ("FLUX.2-klein-4B", "FLUX.2-klein-base-9B"):
        needs = [need(memory.presumed_architecture(REGISTRY[name]), preset) for preset in PRESETS]
        assert all(later.device > 0 for later in needs)
        assert needs[0].device > needs[-1].device


@pytest.fixture(scope="module")
def tiny() -> Flux2Components:
    components: Flux2Components = load(TINY_KLEIN, CpuAccelerator())
    return components


def test_what_waits_on_the_host_is_counted(tiny: Flux2Components) -> None:
    offloaded = load(TINY_KLEIN, CpuAccelerator(), offload="text+modulation")
    freed = weight_bytes(tiny.transformer) - weight_bytes(offloaded.transformer)
    assert freed == 4 * counts_of(TINY).modulation
    temb = torch.randn(2, counts_of(TINY).width)
    ours, theirs = offloaded.transformer, tiny.transformer
    assert torch.equal(ours.single_stream_modulation(temb), theirs.single_stream_modulation(temb))


def test_a_step_stays_below_its_estimate_and_not_far_below() -> None:
    transformer = on_meta(lambda: Flux2Transformer2DModel(**KLEIN.transformer))
    text, image, width = 512, 4096, 3072

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: object) -> Tensor:
        return query.new_empty(query.shape[0], query.shape[1] * query.shape[2])

    def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    layout = PackLayout((text,), (image,), made(text + image, 1, 64, dtype=torch.complex64))
    with torch.no_grad(), Peak(transformer) as peak:
        packed_forward(transformer, layout, made(image, 128), made(text, width), made(1, 17 * width), Compute(attend))
    estimate = memory.step_bytes(KLEIN, 1024, 1024, text)
    assert 0.6 * estimate <= peak.bytes <= estimate


@pytest.mark.parametrize(("rows", "columns", "text"), [(4, 4, 16), (3, 7, 5)])
def test_a_step_is_what_pytorch_counts(tiny: Flux2Components, rows: int, columns: int, text: int) -> None:
    config, image = TINY.transformer, rows * columns

    def run() -> None:
        tiny.transformer(
            hidden_states=torch.randn(1, image, config["in_channels"]),
            encoder_hidden_states=torch.randn(1, text, config["joint_attention_dim"]),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(image, 4),
            txt_ids=torch.zeros(text, 4),
        )

    assert flops.flux2_step_flops(config, image, text) == counted(run)


def rotations(text: Mapping[str, Any], tokens: int) -> tuple[int, int]:
    """What the table of rotations takes: older transformers make it by a matrix product, newer ones do not."""
    return 0, text["head_dim"] * tokens


def test_a_step_beside_kept_references_is_what_pytorch_counts(tiny: Flux2Components) -> None:
    config, image, text, kept = TINY.transformer, 12, 5, 20
    transformer = replace(tiny, passes_references_once=True).pipeline().transformer
    given = {
        "encoder_hidden_states": torch.randn(1, text, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.5]),
        "txt_ids": torch.zeros(text, 4),
        "return_dict": False,
    }
    both = torch.randn(1, kept + image, config["in_channels"])
    _, cache = transformer(
        hidden_states=both, img_ids=torch.zeros(kept + image, 4), kv_cache_mode="extract", num_ref_tokens=kept, **given
    )

    def run() -> None:
        transformer(
            hidden_states=both[:, kept:], img_ids=torch.zeros(image, 4), kv_cache=cache, kv_cache_mode="cached", **given
        )

    assert flops.flux2_step_flops(config, image, text, kept) == counted(run)


def test_the_saving_in_the_manual_is_what_is_counted() -> None:
    rows = re.findall(
        r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) x \|$",
        (Path(__file__).parents[3] / "docs" / "families.md").read_text(),
        re.MULTILINE,
    )
    assert [int(count) for count, *_ in rows] == [1, 2, 4]
    config, drawn, text = ARCHITECTURES["random:FLUX.2-klein-9B-KV"].transformer, 4096, 512
    for count, *told in rows:
        seen = int(count) * 4096
        always = flops.flux2_step_flops(config, drawn + seen, text)
        later, once = flops.flux2_step_flops(config, drawn, text, seen), flops.flux2_step_flops(config, seen, 0)
        saved = 4 * always / (4 * later + once)
        assert [float(each) for each in told] == [
            pytest.approx(value, abs=0.05) for value in (always / 1e12, later / 1e12, once / 1e12, saved)
        ]


def test_encoding_and_decoding_are_what_pytorch_counts(tiny: Flux2Components) -> None:
    run: Callable[[], object] = lambda: tiny.text_encoder(torch.zeros(1, 11, dtype=torch.long))  # noqa: E731
    assert counted(run) - flops.qwen3_flops(TINY.text, 11) in rotations(TINY.text, 11)
    latents = torch.randn(1, TINY.vae["latent_channels"], 6, 14)
    assert flops.decode_flops(TINY.vae, 6, 14) == counted(lambda: tiny.vae.decode(latents))


@pytest.mark.parametrize(("name", "step"), [("random:FLUX.2-klein-4B", 34.8), ("random:FLUX.2-klein-9B", 75.5)])
def test_klein_has_the_published_count(name: str, step: float) -> None:
    request = flops.request_flops(ARCHITECTURES[name], 1024, 1024, steps=4, text_tokens=512)
    assert request.step / 1e12 == pytest.approx(step, rel=2e-3)
    assert request.decode / 1e12 == pytest.approx(10.5, rel=2e-2)


def test_real_guidance_counts_twice() -> None:
    plain, guided = (
        flops.request_flops(flops.architecture_of(spec), 64, 64, 4, 24) for spec in (TINY_KLEIN, TINY_KLEIN_BASE)
    )
    assert (guided.step, guided.text) == (2 * plain.step, 2 * plain.text)


def test_presets_name_what_they_shrink() -> None:
    held = memory.part_bytes(KLEIN, Preset("fp8", "text"))
    assert held["text_encoder"] == 0
    assert held["transformer"] == 2 * counts_of(KLEIN).transformer - sum(counts_of(KLEIN).blocks)


def test_the_table_of_the_manual_is_what_is_counted() -> None:
    lines = (Path(__file__).parents[3] / "docs" / "models.md").read_text().splitlines()
    for preset in PRESETS:
        label = f"`{preset.flags}`" if preset.flags else "no flags"
        for line in (line for line in lines if line.startswith(f"| {label} |")):
            cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
            sizes = [need(ARCHITECTURES[f"random:FLUX.2-klein-{size}"], preset) for size in ("4B", "9B")]
            assert cells == [f"{n / 1e9:.1f} GB" for each in sizes for n in (each.device, each.host)], line
    assert sum(line.startswith("| no flags |") for line in lines) == 1
