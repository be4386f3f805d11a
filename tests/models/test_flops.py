"""Counted arithmetic against PyTorch's own counter, and against the figures that goals are set by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import flops
from models.accelerator import open_accelerator
from models.architectures import ARCHITECTURES
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load
from models.registry import REGISTRY, TINY

ARCH = ARCHITECTURES["random:tiny"]


@pytest.fixture(scope="module")
def tiny() -> FluxComponents:
    return load(TINY, open_accelerator("cpu"))


def counted(run: Callable[[], object]) -> int:
    """What PyTorch counts; with attention as plain matrix products, which it knows on every device."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("rows", "columns", "text"), [(4, 4, 16), (3, 7, 5)])
def test_a_step_is_what_pytorch_counts(tiny: FluxComponents, rows: int, columns: int, text: int) -> None:
    config = ARCH.transformer
    image = rows * columns

    def run() -> None:
        tiny.transformer(
            hidden_states=torch.randn(1, image, config["in_channels"]),
            encoder_hidden_states=torch.randn(1, text, config["joint_attention_dim"]),
            pooled_projections=torch.randn(1, config["pooled_projection_dim"]),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.zeros(image, 3),
            txt_ids=torch.zeros(text, 3),
        )

    assert flops.step_flops(config, image, text) == counted(run)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 14)])
def test_decoding_is_what_pytorch_counts(tiny: FluxComponents, height: int, width: int) -> None:
    latents = torch.randn(1, ARCH.vae["latent_channels"], height, width)
    assert flops.decode_flops(ARCH.vae, height, width) == counted(lambda: tiny.vae.decode(latents))


def test_encoding_a_prompt_is_what_pytorch_counts(tiny: FluxComponents) -> None:
    tokens = ARCH.clip["max_position_embeddings"]
    clip = counted(lambda: tiny.text_encoder(torch.zeros(1, tokens, dtype=torch.long)))
    t5 = counted(lambda: tiny.text_encoder_2(torch.zeros(1, 11, dtype=torch.long)))
    assert (flops.clip_flops(ARCH.clip), flops.t5_flops(ARCH.t5, 11)) == (clip, t5)


def test_a_request_is_text_and_every_step_and_one_decoding() -> None:
    request = flops.request_flops(ARCH, width=60, height=30, steps=7, text_tokens=16)
    assert request.step == flops.step_flops(ARCH.transformer, 4 * 8, 16)
    assert request.decode == flops.decode_flops(ARCH.vae, 8, 16)
    assert request.total == request.text + 7 * request.step + request.decode


@pytest.mark.parametrize(
    ("side", "step", "decode", "total"),
    [(512, 21.50, 2.515, 609), (1024, 74.38, 10.47, 2098), (2048, 418.1, 48.5, 11760)],
)
def test_flux_dev_has_the_published_count(side: int, step: float, decode: float, total: float) -> None:
    arch = flops.architecture_of(REGISTRY["random:FLUX.1-dev"])
    request = flops.request_flops(arch, side, side, steps=28, text_tokens=512)
    tera = [value / 1e12 for value in (request.step, request.decode, request.total)]
    assert tera == pytest.approx([step, decode, total], rel=1e-3)
    assert request.text / 1e12 == pytest.approx(4.85, rel=2e-3)


def test_a_folder_is_counted_by_its_configs(tiny: FluxComponents) -> None:
    spec = resolve("flux-shapes")
    components = load(spec, open_accelerator("cpu"))
    arch = flops.architecture_of(spec)
    assert flops.t5_flops(arch.t5, 9) == counted(lambda: components.text_encoder_2(torch.zeros(1, 9, dtype=torch.long)))
    latents = torch.randn(1, components.latent_channels, 8, 8)
    assert flops.decode_flops(arch.vae, 8, 8) == counted(lambda: components.vae.decode(latents))
