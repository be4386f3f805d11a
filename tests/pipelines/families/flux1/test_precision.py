"""What may not be computed in the dtype that was asked for, and what becomes of values that are not numbers."""

from __future__ import annotations

import pytest
import torch

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import REGISTRY, TINY
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.frames import Failed, Finished
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures, submit


def test_float16_spares_what_overflows_in_it() -> None:
    loaded = load(REGISTRY["flux-shapes"], CpuAccelerator(), torch.float16)
    text = dict(loaded.text_encoder_2.named_parameters())
    assert {dtype for name, parameter in text.items() if (dtype := parameter.dtype) and ".wo." in name} == {
        torch.float32
    }
    assert {parameter.dtype for name, parameter in text.items() if ".wo." not in name} == {torch.float16}
    assert {parameter.dtype for parameter in loaded.vae.parameters()} == {torch.float32}
    assert loaded.dtype == torch.float16


@pytest.mark.parametrize("source", ["flux-shapes", TINY.name])
def test_float16_draws(source: str) -> None:
    components = load(REGISTRY.get(source, TINY), CpuAccelerator(), torch.float16)
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    submit(engine, "one", make_params(width=64, height=64, num_inference_steps=2, preview_every=1))
    frames = drain(engine)
    assert len(of(frames, "one", Finished)) == 1
    assert pictures(frames, "one")[0].std() > 0


def test_a_decoder_that_overflows_fails_the_request(components: FluxComponents) -> None:
    bias = components.vae.decoder.conv_out.bias
    kept = bias.clone()
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    try:
        bias.fill_(float("nan"))
        submit(engine, "bad", make_params())
        failed = of(drain(engine), "bad", Failed)
    finally:
        bias.copy_(kept)
    assert len(failed) == 1
    assert "not numbers" in failed[0].message
    submit(engine, "good", make_params())
    assert len(of(drain(engine), "good", Finished)) == 1
