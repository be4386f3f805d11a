"""How much memory a checkpoint needs, counted from its architecture, and which settings make it fit. No torch.

Weights are exact. What a step and a decode need beside them is an estimate for one picture of 1024 x 1024, held to what
the modules really allocate by `tests/models/test_memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from models.architectures import ARCHITECTURES, FLUX_TRANSFORMER, Architecture
from models.flops import architecture_of
from models.registry import REGISTRY, ModelSpec

Offload = Literal["none", "text", "text+modulation", "text+blocks"]
"""What waits in the host's memory until it is used: nothing, the text encoders, the transformer's modulation too, or
besides the matrices of all its blocks.

Modulation is 27 % of FLUX.1's transformer and is read once a request, when it is admitted; blocks pass in every step.
"""
MODULATION_WAITS: tuple[Offload, ...] = ("text+modulation", "text+blocks")
OFFLOADS: tuple[Offload, ...] = get_args(Offload)

_TIME_CHANNELS = 256
_T5_BUCKETS = 32
_STEP_VECTORS = 26
"""Vectors of the model's width that a joint token holds at a step's fullest moment, at two bytes a number."""
_DECODE_PLANES = 5
"""Planes of the widest full-size activation that a decode holds at its fullest moment."""
TILED_SIDE = 512
"""Pixels along a side of what is decoded at once where the whole picture does not fit."""
_RESERVE = 1_500_000_000
"""CUDA's own context and libraries, kept prompts, and what the allocator cannot use for being cut up."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One way to hold a checkpoint: values of --quantization and --offload."""

    quantization: str
    offload: str

    @property
    def is_streamed(self) -> bool:
        """Whether the transformer's blocks pass in every step."""
        return self.offload == "text+blocks"

    @property
    def block_itemsize(self) -> float:
        """Bytes that a weight of the blocks takes."""
        return 1.0 if self.quantization == "fp8" else 2.0

    @property
    def flags(self) -> str:
        """What to type for it; empty for the defaults."""
        given = (("--quantization", self.quantization), ("--offload", self.offload))
        return " ".join(f"{flag} {value}" for flag, value in given if value != "none")


PRESETS = tuple(
    Preset(quantization, offload)
    for offloads in (OFFLOADS[:-1], OFFLOADS[-1:])
    for quantization in ("none", "fp8")
    for offload in offloads
)
"""From the roomiest to the tightest; those that do not change pictures come before those that do, and what moves all
blocks in every step comes last."""

FP8_CAPABILITY = (8, 9)
"""Compute capability from which on float8 matrix products exist."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. `weights`, `working`: on the device. `host`: weights that wait in the machine's memory."""

    weights: int
    working: int
    host: int

    @property
    def device(self) -> int:
        return self.weights + self.working


def need(arch: Architecture, preset: Preset, width: int = 1024, height: int = 1024, text_tokens: int = 512) -> Need:
    """What one checkpoint in half precision needs to draw one picture at a time of so many pixels."""
    held = part_bytes(arch, preset)
    whole = part_bytes(arch, Preset(preset.quantization, "none"))
    host = sum(whole.values()) - sum(held.values())
    if preset.is_streamed:  # the host holds those blocks as well that are on the device
        host += buffer_bytes(arch.transformer, preset.block_itemsize)
    return Need(sum(held.values()), working_bytes(arch, preset, width, height, text_tokens), host)


def part_bytes(arch: Architecture, preset: Preset) -> dict[str, int]:
    """What each part's weights take of the device, in half precision."""
    shrunk = fp8_parameters(arch.transformer) if preset.quantization == "fp8" else 0
    is_offloaded = preset.offload != "none"
    if preset.offload in MODULATION_WAITS:
        shrunk += 2 * modulation_parameters(arch.transformer)
    if preset.is_streamed:
        itemsize = preset.block_itemsize
        shrunk += streamed_bytes(arch.transformer, itemsize) - buffer_bytes(arch.transformer, itemsize)
    return {
        "text_encoder": 0 if is_offloaded else 2 * clip_parameters(arch.clip),
        "text_encoder_2": 0 if is_offloaded else 2 * t5_parameters(arch.t5),
        "vae": 2 * vae_parameters(arch.vae),
        "transformer": 2 * transformer_parameters(arch.transformer) - shrunk,
    }


def working_bytes(arch: Architecture, preset: Preset, width: int, height: int, text_tokens: int = 512) -> int:
    """What the device holds beside weights while one picture is drawn."""
    # A text encoder that waits on the host comes in piece by piece; its largest piece is the embedding of its words,
    # which is larger than any of modulation's.
    piece = 2 * arch.t5["vocab_size"] * arch.t5["d_model"] if preset.offload != "none" else 0
    return piece + step_bytes(arch, width, height, text_tokens) + decode_bytes(arch.vae, width, height) + _RESERVE


def recommend(arch: Architecture, device_bytes: int, capability: tuple[int, int]) -> Preset | None:
    """The first preset that fits into a device; None if even the tightest does not."""
    for preset in PRESETS:
        if preset.quantization == "fp8" and capability < FP8_CAPABILITY:
            continue
        if need(arch, preset).device <= device_bytes:
            return preset
    return None


def presumed_architecture(spec: ModelSpec) -> Architecture:
    """The architecture of a checkpoint without asking any hub: what is no folder here is taken for FLUX.1's, and what
    belongs to another checkpoint for that one's.

    Raises: LoadError if its folder is gone; KeyError for an unknown random architecture.
    """
    if spec.base is not None:
        return presumed_architecture(REGISTRY[spec.base])
    if spec.source.startswith("random:") or Path(spec.source).is_absolute():
        return architecture_of(spec)
    return ARCHITECTURES["random:FLUX.1-schnell" if spec.variant == "schnell" else "random:FLUX.1-dev"]


def parameters(arch: Architecture) -> int:
    """Of all parts."""
    text = clip_parameters(arch.clip) + t5_parameters(arch.t5)
    return text + transformer_parameters(arch.transformer) + vae_parameters(arch.vae)


def step_bytes(arch: Architecture, width: int, height: int, text_tokens: int) -> int:
    """Activations of one denoising step over one picture, in half precision."""
    cell = 2 ** len(arch.vae["block_out_channels"])
    tokens = -(-height // cell) * -(-width // cell) + text_tokens
    return int(2 * _STEP_VECTORS * tokens * _width(_full(arch.transformer)))


def decode_bytes(vae: Mapping[str, Any], width: int, height: int) -> int:
    """Activations of one decode in half precision: full-size planes as wide as the second-finest level."""
    channels = vae["block_out_channels"]
    return 2 * _DECODE_PLANES * width * height * int(channels[min(1, len(channels) - 1)])


def transformer_parameters(transformer: Mapping[str, Any]) -> int:
    """Parameters of diffusers' FluxTransformer2DModel."""
    config = _full(transformer)
    width, head = _width(config), int(config["attention_head_dim"])
    embedders = [_TIME_CHANNELS, int(config["pooled_projection_dim"])]
    embedders += [_TIME_CHANNELS] if config["guidance_embeds"] else []
    ends = sum(_linear(inner, width) + _linear(width, width) for inner in embedders)
    ends += _linear(config["in_channels"], width) + _linear(config["joint_attention_dim"], width)
    ends += _linear(width, 2 * width) + _linear(width, config["in_channels"])
    double = 2 * _linear(width, 6 * width) + _double_linears(width) + 4 * head
    single = _linear(width, 3 * width) + _single_linears(width) + 2 * head
    return int(ends + config["num_layers"] * double + config["num_single_layers"] * single)


def fp8_parameters(transformer: Mapping[str, Any]) -> int:
    """Weights that `--quantization fp8` makes half as large: the blocks' linears but for modulation and biases."""
    config = _full(transformer)
    width = _width(config)
    # Row-wise scales cost four bytes a row, which is below a thousandth of the row: left out.
    return int((config["num_layers"] * 24 + config["num_single_layers"] * 12) * width**2)


def streamed_bytes(transformer: Mapping[str, Any], itemsize: float) -> int:
    """What passes the bus in every step where blocks wait on the host. Args: itemsize: bytes a weight takes."""
    return int(fp8_parameters(transformer) * itemsize)


def buffer_bytes(transformer: Mapping[str, Any], itemsize: float) -> int:
    """What `models.streaming` holds of the blocks on the device: the two largest neighbours."""
    config = _full(transformer)
    kinds = [24] * config["num_layers"] + [12] * config["num_single_layers"]
    return int((max(kinds[0::2], default=0) + max(kinds[1::2], default=0)) * _width(config) ** 2 * itemsize)


def modulation_parameters(transformer: Mapping[str, Any]) -> int:
    """Weights that make the AdaLN vectors of the blocks and of the last norm, without their biases."""
    config = _full(transformer)
    return int((12 * config["num_layers"] + 3 * config["num_single_layers"] + 2) * _width(config) ** 2)


def t5_parameters(t5: Mapping[str, Any]) -> int:
    """Parameters of transformers' T5EncoderModel."""
    width, inner = t5["d_model"], t5["num_heads"] * t5["d_kv"]
    gates = 3 if str(t5.get("feed_forward_proj", "relu")).startswith("gated") else 2
    layer = 4 * width * inner + gates * width * t5["d_ff"] + 2 * width
    return int(t5["vocab_size"] * width + t5["num_layers"] * layer + _T5_BUCKETS * t5["num_heads"] + width)


def clip_parameters(clip: Mapping[str, Any]) -> int:
    """Parameters of transformers' CLIPTextModel."""
    width, inner = clip["hidden_size"], clip["intermediate_size"]
    layer = 4 * _linear(width, width) + _linear(width, inner) + _linear(inner, width) + 4 * width
    embeddings = (clip["vocab_size"] + clip["max_position_embeddings"]) * width
    return int(embeddings + clip["num_hidden_layers"] * layer + 2 * width)


def vae_parameters(vae: Mapping[str, Any]) -> int:
    """Parameters of diffusers' AutoencoderKL, both halves."""
    channels, latent, layers = list(vae["block_out_channels"]), vae["latent_channels"], vae["layers_per_block"]
    widest = channels[-1]
    middle = 2 * _resnet(widest, widest)
    if vae.get("mid_block_add_attention", True):
        middle += 2 * widest + 4 * _linear(widest, widest)
    encoder = _conv(3, channels[0]) + middle + 2 * widest + _conv(widest, 2 * latent) + _levels(channels, layers)
    decoder = _conv(latent, widest) + middle + 2 * channels[0] + _conv(channels[0], 3)
    decoder += _levels(channels[::-1], layers + 1)
    quant = _linear(2 * latent, 2 * latent) if vae.get("use_quant_conv", True) else 0
    post_quant = _linear(latent, latent) if vae.get("use_post_quant_conv", True) else 0
    return int(encoder + decoder + quant + post_quant)


def _levels(channels: list[int], resnets: int) -> int:
    """The levels of one half of the VAE, each but the last followed by a convolution that resamples."""
    total, before = 0, channels[0]
    for level, after in enumerate(channels):
        total += _resnet(before, after) + (resnets - 1) * _resnet(after, after)
        total += _conv(after, after) if level < len(channels) - 1 else 0
        before = after
    return total


def _resnet(before: int, after: int) -> int:
    norms = 2 * before + 2 * after
    return norms + _conv(before, after) + _conv(after, after) + (_linear(before, after) if before != after else 0)


def _conv(before: int, after: int) -> int:
    return 9 * before * after + after


def _linear(before: int, after: int) -> int:
    return before * after + after


def _double_linears(width: int) -> int:
    return 8 * _linear(width, width) + 2 * (_linear(width, 4 * width) + _linear(4 * width, width))


def _single_linears(width: int) -> int:
    return 3 * _linear(width, width) + _linear(width, 4 * width) + _linear(5 * width, width)


def _full(transformer: Mapping[str, Any]) -> dict[str, Any]:
    return {**FLUX_TRANSFORMER, **transformer}


def _width(config: Mapping[str, Any]) -> int:
    return int(config["attention_head_dim"] * config["num_attention_heads"])
