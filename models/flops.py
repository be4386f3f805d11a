"""How much arithmetic a request is, counted from the architecture: multiply-adds of matrices, times two. No torch.

What PyTorch's FlopCounterMode counts: matrix products, convolutions, attention; not norms, activations or softmax. The
safety checker is left out. An engine that computes less than this for the same picture is credited with all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models.architectures import ARCHITECTURES, FLUX_TRANSFORMER, Architecture
from models.arguments import read_object
from models.checkpoint_files import locate
from models.counts import AnyArchitecture, flux2_blocks, flux2_width, flux3_blocks, flux3_width
from models.files.folder import FLUX2_DEV, is_distilled, part_in
from models.flux2.architectures import ARCHITECTURES as FLUX2_ARCHITECTURES
from models.flux2.architectures import FLUX2_TRANSFORMER, MISTRAL_LAYERS, READ_LAYERS, Flux2Architecture
from models.flux3.architectures import ARCHITECTURES as FLUX3_ARCHITECTURES
from models.flux3.architectures import FLUX3_TRANSFORMER, Flux3Architecture
from models.flux3.architectures import READ_LAYERS as FLUX3_READ_LAYERS
from models.registry import ModelSpec
from models.sdxl.architectures import ARCHITECTURES as SDXL_ARCHITECTURES
from models.sdxl.architectures import SdxlArchitecture
from models.sdxl.counts import unet_flops

_SDXL_FILES = {
    "sdxl": "random:SDXL", "lightning": "random:SDXL-Lightning", "playground": "random:Playground-v2.5",
}  # fmt: skip
_TIME_CHANNELS = 256
"""Width of the sinusoidal embedding of a timestep or guidance value."""


@dataclass(frozen=True, slots=True)
class RequestFlops:
    """Floating point operations of one picture, by stage. `step` is one of `steps` denoising steps."""

    text: int
    step: int
    steps: int
    decode: int

    @property
    def total(self) -> int:
        return self.text + self.steps * self.step + self.decode


def architecture_of(spec: ModelSpec) -> AnyArchitecture:
    """The architecture behind a checkpoint: known by name for random weights, else read from its configs.

    Single files are taken for the published ones of their kind.

    Raises: LoadError if the checkpoint is not on this machine and cannot be fetched; KeyError for an unknown name.
    """
    if spec.source.startswith("random:"):
        return random_architecture(spec.source)
    if spec.file is not None and spec.transformer is None:
        if spec.variant in ("flux2-dev", "flux2-turbo"):
            return random_architecture("random:FLUX.2-dev")
        if spec.family == "flux2":
            size, base = spec.variant[-2:].upper(), "base-" if "base" in spec.variant else ""
            return random_architecture(f"random:FLUX.2-klein-{base}{size}")
        if spec.family == "sdxl":
            return random_architecture(_SDXL_FILES[spec.variant])
        return ARCHITECTURES["random:FLUX.1-schnell" if spec.variant == "schnell" else "random:FLUX.1-dev"]
    folder = locate(spec)
    if spec.family == "flux2":
        index = read_object(folder / "model_index.json")
        of = partial(_config, folder)
        transformer, vae, text, sigmas = of("transformer"), of("vae"), of("text_encoder"), of("scheduler")
        if index.get("_class_name") == FLUX2_DEV:
            return Flux2Architecture(transformer, vae, text.get("text_config", text), sigmas, read=MISTRAL_LAYERS)
        return Flux2Architecture(transformer, vae, text, sigmas, 1 if is_distilled(index) else 2)
    if spec.family == "flux3":
        of = partial(_config, folder)
        transformer, vae, text, sigmas = of("transformer"), of("vae"), of("text_encoder"), of("scheduler")
        forwards = 1 if transformer.get("flow_map", False) else 2
        return Flux3Architecture(transformer, vae, text.get("text_config", text), sigmas, forwards)
    if spec.family == "sdxl":
        names = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")
        unet, vae, clip, clip_2, scheduler = (_config(folder, part) for part in names)
        return SdxlArchitecture(unet, vae, clip, clip_2, scheduler, forwards=2 if spec.default_guidance > 1 else 1)
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler")
    return Architecture(*(_config(folder, part) for part in parts))


def random_architecture(name: str) -> AnyArchitecture:
    """Raises: KeyError for an unknown name."""
    if name in SDXL_ARCHITECTURES:
        return SDXL_ARCHITECTURES[name]
    if name in FLUX3_ARCHITECTURES:
        return FLUX3_ARCHITECTURES[name]
    return FLUX2_ARCHITECTURES[name] if name in FLUX2_ARCHITECTURES else ARCHITECTURES[name]


def _config(folder: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config: dict[str, Any] = json.loads((part_in(folder, part) / name).read_text())
    return config


def request_flops(arch: AnyArchitecture, width: int, height: int, steps: int, text_tokens: int) -> RequestFlops:
    """One picture of so many pixels; sides are rounded up to whole tokens, as the engine draws them."""
    if isinstance(arch, SdxlArchitecture):
        return _sdxl_flops(arch, width, height, steps)
    cell = 2 ** len(arch.vae["block_out_channels"])
    rows, columns = -(-height // cell), -(-width // cell)
    if isinstance(arch, Flux3Architecture):
        text = arch.forwards * qwen3_flops(arch.text, text_tokens, FLUX3_READ_LAYERS[-1])
        step = arch.forwards * flux3_step_flops(arch.transformer, rows * columns, text_tokens)
    elif isinstance(arch, Flux2Architecture):
        text = arch.forwards * qwen3_flops(arch.text, text_tokens, arch.read[-1])
        step = arch.forwards * flux2_step_flops(arch.transformer, rows * columns, text_tokens)
    else:
        text = clip_flops(arch.clip) + t5_flops(arch.t5, text_tokens)
        step = step_flops(arch.transformer, rows * columns, text_tokens)
    return RequestFlops(text, step, steps, decode_flops(arch.vae, 2 * rows, 2 * columns))


def _sdxl_flops(arch: SdxlArchitecture, width: int, height: int, steps: int) -> RequestFlops:
    cell = 2 ** (len(arch.vae["block_out_channels"]) - 1)
    rows, columns = -(-height // cell), -(-width // cell)
    projection = 2 * arch.clip_2["hidden_size"] * arch.clip_2["projection_dim"]
    text = arch.forwards * (clip_flops(arch.clip) + clip_flops(arch.clip_2) + projection)
    return RequestFlops(
        text, arch.forwards * unet_flops(arch.unet, rows, columns), steps, decode_flops(arch.vae, rows, columns)
    )


def step_flops(transformer: Mapping[str, Any], image_tokens: int, text_tokens: int) -> int:
    """One forward of the FLUX transformer over one picture.

    Every token passes 12 D^2 weights in each block of either kind; attention is 4 S^2 D over the joint sequence.
    """
    config = {**FLUX_TRANSFORMER, **transformer}
    width = config["attention_head_dim"] * config["num_attention_heads"]
    double, single = config["num_layers"], config["num_single_layers"]
    joint = image_tokens + text_tokens
    blocks = (double + single) * (12 * width**2 * joint + 2 * joint**2 * width)
    # Two streams of six vectors in a double block, three in a single one, two before the output.
    modulation = (12 * double + 3 * single + 2) * width**2
    embedded = config["pooled_projection_dim"] + _TIME_CHANNELS * (2 if config["guidance_embeds"] else 1)
    conditioning = (embedded + (3 if config["guidance_embeds"] else 2) * width) * width
    ends = (2 * image_tokens * config["in_channels"] + text_tokens * config["joint_attention_dim"]) * width
    return int(2 * (blocks + modulation + conditioning + ends))


def flux2_step_flops(transformer: Mapping[str, Any], image_tokens: int, text_tokens: int, kept_tokens: int = 0) -> int:
    """One forward of the FLUX.2 transformer over one picture.

    Args: image_tokens: references included. kept_tokens: of references that are attended to and not computed.
    """
    config = {**FLUX2_TRANSFORMER, **transformer}
    width, layers, joint = flux2_width(config), config["num_layers"], image_tokens + text_tokens
    blocks = flux2_blocks(config)
    # In a double block each token passes the half of its own stream.
    attention = 2 * len(blocks) * joint * (joint + kept_tokens) * width
    products = (sum(blocks[:layers]) // 2 + sum(blocks[layers:])) * joint + attention
    embedders = 2 if config["guidance_embeds"] else 1
    conditioning = 17 * width**2 + embedders * (config["timestep_guidance_channels"] + width) * width
    ends = (2 * image_tokens * config["in_channels"] + text_tokens * config["joint_attention_dim"]) * width
    return int(2 * (products + conditioning + ends))


def flux3_step_flops(transformer: Mapping[str, Any], image_tokens: int, text_tokens: int) -> int:
    """One forward of diffusers' FLUX.3 transformer over one picture without references.

    Every token passes the blocks of its own mode and those of all together, and makes modulation of its own: what the
    engine computes once a picture is credited to it.
    """
    config = {**FLUX3_TRANSFORMER, **transformer}
    width, layers, single = flux3_width(config), config["num_layers"], config["num_single_layers"]
    joint, block = image_tokens + text_tokens, flux3_blocks(config)[0]
    attention = 2 * width * (layers * (image_tokens**2 + text_tokens**2) + single * joint**2)
    modulation = (6 * joint + 2 * image_tokens) * width**2
    conditioning = (3 if config["flow_map"] else 2) * (config["timestep_channels"] + width) * width
    ends = (2 * image_tokens * config["in_channels"] + text_tokens * config["joint_attention_dim"]) * width
    return int(2 * ((layers + single) * block * joint + attention + modulation + conditioning + ends))


def qwen3_flops(text: Mapping[str, Any], tokens: int, layers: int = READ_LAYERS[-1]) -> int:
    """One prompt through the layers of Qwen3, or of Mistral, that are read, padding included."""
    inner, width = text["num_attention_heads"] * text["head_dim"], text["hidden_size"]
    attention = 2 * (inner + text["num_key_value_heads"] * text["head_dim"]) * width
    linears = tokens * (attention + 3 * width * text["intermediate_size"])
    return int(2 * layers * (linears + 2 * tokens**2 * inner))


def t5_flops(t5: Mapping[str, Any], tokens: int) -> int:
    """One prompt through the T5 encoder, padding included."""
    inner = t5["num_heads"] * t5["d_kv"]
    gates = 3 if str(t5.get("feed_forward_proj", "relu")).startswith("gated") else 2
    linears = tokens * t5["d_model"] * (4 * inner + gates * t5["d_ff"])
    return int(2 * t5["num_layers"] * (linears + 2 * tokens**2 * inner))


def clip_flops(clip: Mapping[str, Any]) -> int:
    """One prompt through the CLIP text encoder, always padded to its full length."""
    width, tokens = clip["hidden_size"], clip["max_position_embeddings"]
    linears = tokens * width * (4 * width + 2 * clip["intermediate_size"])
    return int(2 * clip["num_hidden_layers"] * (linears + 2 * tokens**2 * width))


def decode_flops(vae: Mapping[str, Any], height: int, width: int) -> int:
    """One picture through the VAE decoder. Args: height, width: in latent cells."""
    channels = list(reversed(vae["block_out_channels"]))
    latent, widest, resnets = vae["latent_channels"], channels[0], vae["layers_per_block"] + 1
    area = height * width
    per_cell = 9 * latent * widest + (latent**2 if vae.get("use_post_quant_conv", True) else 0)
    total = area * (per_cell + 2 * _resnet(widest, widest))
    if vae.get("mid_block_add_attention", True):
        total += area * 4 * widest**2 + 2 * area**2 * widest
    before = widest
    for level, after in enumerate(channels):
        total += area * (_resnet(before, after) + (resnets - 1) * _resnet(after, after))
        if level < len(channels) - 1:
            area *= 4
            total += area * 9 * after**2
        before = after
    return int(2 * (total + area * 9 * before * 3))


def _resnet(before: int, after: int) -> int:
    """Multiply-adds a pixel of a residual block with two 3 x 3 convolutions."""
    return 9 * after * (before + after) + (before * after if before != after else 0)
