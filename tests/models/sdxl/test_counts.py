"""Counted parameters and arithmetic of SDXL against real modules and PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from models import flops, memory
from models.counts import counts_of
from models.memory import Preset, need
from models.registry import REGISTRY
from models.sdxl.architectures import ARCHITECTURES
from models.sdxl.counts import unet_flops
from tests.models.test_flops import counted
from tests.models.test_memory import Peak, on_meta, parameters

SDXL = ARCHITECTURES["random:SDXL"]


@pytest.mark.parametrize("name", ["random:tiny-sdxl", "random:SDXL"])
def test_every_parameter_is_counted(name: str) -> None:
    arch, made = ARCHITECTURES[name], counts_of(ARCHITECTURES[name])
    assert made.transformer == parameters(on_meta(lambda: UNet2DConditionModel(**arch.unet)))
    assert made.vae == parameters(on_meta(lambda: AutoencoderKL(**arch.vae)))
    assert made.text == {
        "text_encoder": parameters(on_meta(lambda: CLIPTextModel(CLIPTextConfig(**arch.clip)))),
        "text_encoder_2": parameters(on_meta(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**arch.clip_2)))),
    }


def test_sdxl_has_the_published_size() -> None:
    assert counts_of(SDXL).transformer == 2_567_463_684
    assert counts_of(SDXL).total / 1e9 == pytest.approx(3.47, rel=0.01)


@pytest.mark.parametrize(("name", "rows", "columns"), [("random:tiny-sdxl", 7, 6), ("random:SDXL", 16, 24)])
def test_a_step_is_what_pytorch_counts(name: str, rows: int, columns: int) -> None:
    arch = ARCHITECTURES[name]
    unet = on_meta(lambda: UNet2DConditionModel(**arch.unet))
    assert unet_flops(arch.unet, rows, columns) == counted(lambda: _forward(unet, name, rows, columns))


def test_guidance_counts_twice_and_lightning_has_none() -> None:
    guided, plain = (
        flops.request_flops(ARCHITECTURES[name], 1024, 1024, 4, 77) for name in ("random:SDXL", "random:SDXL-Lightning")
    )
    assert (guided.step, guided.text) == (2 * plain.step, 2 * plain.text)
    assert plain.step / 1e12 == pytest.approx(6.76, rel=1e-2)
    assert guided.decode == plain.decode > 2e12


def test_a_step_stays_below_its_estimate_and_not_far_below(monkeypatch: pytest.MonkeyPatch) -> None:
    # On `meta` it would hold whole products, which no kernel of a device does.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda query, *rest, **more: query.clone())
    unet = on_meta(lambda: UNet2DConditionModel(**SDXL.unet))
    with torch.no_grad(), Peak(unet) as peak:
        _forward(unet, "random:SDXL", 128, 128, batch=2)
    estimate = memory.step_bytes(SDXL, 1024, 1024, 77)
    assert 0.6 * estimate <= peak.bytes <= estimate


def test_a_listed_sdxl_is_counted_without_a_hub() -> None:
    for name in ("SDXL", "Playground-v2.5"):
        whole, smaller = (
            need(memory.presumed_architecture(REGISTRY[name]), Preset("none", offload)) for offload in ("none", "text")
        )
        assert 9e9 < smaller.device < whole.device < 14e9


def _forward(unet: UNet2DConditionModel, name: str, rows: int, columns: int, batch: int = 1) -> None:
    arch = ARCHITECTURES[name]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=unet.dtype)

    unet(
        empty(batch, 4, rows, columns),
        torch.empty(batch, device="meta"),
        encoder_hidden_states=empty(batch, 77, arch.unet["cross_attention_dim"]),
        added_cond_kwargs={"text_embeds": empty(batch, arch.clip_2["projection_dim"]), "time_ids": empty(batch, 6)},
    )
