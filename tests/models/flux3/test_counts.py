"""Counted memory and arithmetic of FLUX.3 against real modules and PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux3Transformer2DModel
from torch import nn
from transformers import Qwen3VLTextConfig

from models import flops, memory
from models.accelerator import CpuAccelerator
from models.counts import counts_of
from models.flux3.architectures import ARCHITECTURES
from models.flux3.text_encoder import PromptEncoder
from models.loading import load
from models.memory import PRESETS, need
from models.quantization import is_insensitive
from models.registry import REGISTRY, TINY_FLUX3, TINY_FLUX3_BASE
from models.streaming import blocks_of, is_streamed
from tests.models.test_flops import counted
from tests.models.test_memory import on_meta, parameters


@pytest.mark.parametrize("name", ["random:tiny-flux3", "random:FLUX.3-klein", "random:FLUX.3-klein-base"])
def test_every_parameter_is_counted(name: str) -> None:
    arch, made = ARCHITECTURES[name], counts_of(ARCHITECTURES[name])
    transformer = on_meta(lambda: Flux3Transformer2DModel(**arch.transformer))
    assert made.transformer == parameters(transformer)
    assert made.vae == parameters(on_meta(lambda: AutoencoderKLFlux2(**arch.vae)))
    assert made.text["text_encoder"] == parameters(on_meta(lambda: PromptEncoder(Qwen3VLTextConfig(**arch.text))))
    linears = {key: module for key, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    assert sum(made.blocks) == sum(each.weight.numel() for key, each in linears.items() if is_insensitive(key))
    assert made.blocks == tuple(
        sum(parameter.numel() for parameter in block.parameters() if parameter.ndim >= 2)
        for block in blocks_of(transformer)
    )


def test_klein_has_the_published_size() -> None:
    assert counts_of(ARCHITECTURES["random:FLUX.3-klein"]).transformer / 1e9 == pytest.approx(5.6, rel=0.02)


def test_a_listed_one_is_counted_without_a_hub() -> None:
    needs = [need(memory.presumed_architecture(REGISTRY["FLUX.3-klein"]), preset) for preset in PRESETS]
    assert needs[0].device > needs[-1].device > 0


@pytest.mark.parametrize("spec", [TINY_FLUX3, TINY_FLUX3_BASE], ids=lambda spec: spec.name)
def test_a_step_is_what_pytorch_counts(spec: object) -> None:
    arch = ARCHITECTURES[spec.source]  # type: ignore[attr-defined]
    transformer, config = load(spec, CpuAccelerator()).transformer, arch.transformer  # type: ignore[arg-type]

    def run() -> None:
        transformer(
            hidden_states=torch.randn(1, 12, config["in_channels"]),
            encoder_hidden_states=torch.randn(1, 7, config["joint_attention_dim"]),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(12, 4),
            txt_ids=torch.zeros(7, 4),
            **({"target_timestep": torch.tensor([0.2])} if config["flow_map"] else {}),
        )

    assert flops.flux3_step_flops(config, 12, 7) == counted(run)
    doubled = flops.request_flops(arch, 64, 64, 4, 80).step / flops.flux3_step_flops(config, 64, 80)
    assert doubled == arch.forwards


def test_its_blocks_may_wait_on_the_host() -> None:
    assert is_streamed(load(TINY_FLUX3, CpuAccelerator(), offload="text+blocks").transformer)
