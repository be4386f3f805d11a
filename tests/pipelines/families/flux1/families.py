"""Tiny checkpoints of every family, pictures for them, and diffusers' own pipelines over the same modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel
from diffusers.pipelines.flux import ReduxImageEncoder
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.auxiliaries import Auxiliary, ControlNet, ReduxPrior
from models.components import FluxComponents
from models.registry import TINY, ModelSpec, Variant
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import InputPicture
from pipelines.protocol.frames import Failed
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_engine, of, pictures, submit


def variant_of(components: FluxComponents, variant: Variant, extra_channels: int = 0) -> FluxComponents:
    """The same checkpoint as another family's, with more input channels."""
    config = ARCHITECTURES[TINY.source].transformer | {"out_channels": 16, "in_channels": 16 + extra_channels}
    with _seeded():
        transformer = FluxTransformer2DModel(**config).eval().requires_grad_(False)
    amplify(transformer, 0.2, seed=3)
    return replace(components, spec=replace(TINY, variant=variant, keeps_reference_size=True), transformer=transformer)


@contextmanager
def _seeded() -> Iterator[None]:
    """What `amplify` leaves alone (biases) is the same in every run, too."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def picture(width: int, height: int, seed: int = 0) -> InputPicture:
    """Soft blobs of colour: no two alike, nothing flat."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return InputPicture(width, height, 3, small.resize((width, height), Image.Resampling.BICUBIC).tobytes())


def mask(width: int, height: int, box: tuple[int, int, int, int], soft: int = 0) -> InputPicture:
    """White in the box (left, top, right, bottom), black elsewhere; `soft` pixels of grey around it."""
    values = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    for grey in range(soft, -1, -1):
        level = 255 * (soft + 1 - grey) // (soft + 1)
        values[max(0, top - grey) : bottom + grey, max(0, left - grey) : right + grey] = level
    return InputPicture(width, height, 1, values.tobytes())


def image(given: InputPicture) -> Image.Image:
    return Image.frombytes("RGB" if given.channels == 3 else "L", given.size, given.pixels)


def ours(runner: FluxRunner, params: GenerationParams, given: Sequence[InputPicture]) -> NDArray[np.uint8]:
    """The picture of a lone request."""
    engine = make_engine(runner)
    ask(engine, "a", params, given)
    frames = drain(engine)
    assert not of(frames, "a", Failed), of(frames, "a", Failed)
    (drawn,) = pictures(frames, "a")
    return drawn


def ask(engine: Engine, job: str, params: GenerationParams, given: Sequence[InputPicture]) -> None:
    submit(engine, job, params, pictures=[each.to_dict() for each in given])


@torch.inference_mode()
def theirs(kind: Any, components: FluxComponents, params: GenerationParams, **call: object) -> NDArray[np.uint8]:
    """The picture of diffusers' pipeline `kind` over the same modules.

    Args: call: arguments of the call that differ; `controlnet` and `sigma_config` are the pipeline's own.
    """
    parts = {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae", "transformer"}
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(call.pop("sigma_config", components.sigma_config))),
        **{part: getattr(components, part) for part in parts},
        **{part: call.pop(part) for part in ("controlnet",) if part in call},
    )
    pipeline.set_progress_bar_config(disable=True)
    values: dict[str, object] = {
        "prompt": params.prompt,
        "height": params.height,
        "width": params.width,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "max_sequence_length": min(params.max_sequence_length, components.spec.max_sequence_length),
        "generator": torch.Generator().manual_seed(params.seed),
    }
    drawn = pipeline(**(values | call)).images[0]
    return drawn if isinstance(drawn, torch.Tensor) else np.asarray(drawn)


def run_on(components: FluxComponents, *auxiliaries: Auxiliary, adapters: AdapterCache = NO_ADAPTERS) -> FluxRunner:
    by_name = {auxiliary.spec.name: auxiliary for auxiliary in auxiliaries}
    by_name |= {auxiliary.spec.variant: auxiliary for auxiliary in auxiliaries}
    return FluxRunner(components, CpuAccelerator(), find=by_name.__getitem__, adapters=adapters)


def tiny_prior(joint_dim: int = 24) -> ReduxPrior:
    """An image encoder of four patches and its embedder, random and loud."""
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    with _seeded():
        encoder, embedder = SiglipVisionModel(config), ReduxImageEncoder(redux_dim=16, txt_in_features=joint_dim)
    for seed, module in enumerate((encoder, embedder)):
        module.eval().requires_grad_(False)
        amplify(module, 0.3, seed)
    processor = SiglipImageProcessor(size={"height": 8, "width": 8})
    return ReduxPrior(ModelSpec("prior", "prior", variant="redux"), encoder, embedder, processor)


def saved_prior(folder: Path, joint_dim: int) -> ModelSpec:
    """The same in a folder."""
    parts = tiny_prior(joint_dim)
    for part in ("image_encoder", "image_embedder"):
        parts.modules[part].save_pretrained(folder / part)  # type: ignore[operator]
    parts.image_processor.save_pretrained(folder / "feature_extractor")
    return ModelSpec("prior", str(folder), variant="redux")


def save_estimator(folder: Path) -> None:
    """A depth estimator of a few thousand random weights, as transformers saves one."""
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[4, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    amplify(model, 0.3)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)


def tiny_net(name: str, doubles: int = 1, singles: int = 1, seed: int = 5) -> ControlNet:
    """A ControlNet for the tiny checkpoint, loud where a fresh one is silent."""
    config = ARCHITECTURES[TINY.source].transformer | {"num_layers": doubles, "num_single_layers": singles}
    with _seeded():
        net = FluxControlNetModel(**config).eval().requires_grad_(False)
    amplify(net, 0.15, seed)
    return ControlNet(ModelSpec(name, name, variant="controlnet"), net)
