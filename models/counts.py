"""Parameters of FLUX architectures, counted from the constructor arguments of their parts. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.architectures import FLUX_TRANSFORMER, Architecture
from models.flux2.architectures import FLUX2_TRANSFORMER, READ_LAYERS, Flux2Architecture
from models.flux3.architectures import FLUX3_TRANSFORMER, MODES, Flux3Architecture
from models.flux3.architectures import READ_LAYERS as FLUX3_READ_LAYERS
from models.sdxl.architectures import SdxlArchitecture
from models.sdxl.counts import unet_parameters

AnyArchitecture = Architecture | Flux2Architecture | Flux3Architecture | SdxlArchitecture

_TIME_CHANNELS = 256
_T5_BUCKETS = 32
_FLUX2_MODULATION = 17
"""Squares of the model's width that make AdaLN vectors: all blocks of a kind share theirs."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a checkpoint's memory depends on.

    Args:
        text: parameters of each text encoder, by part.
        vae, transformer: parameters.
        blocks: values of the matrices of each of the transformer's blocks, in order.
        modulation: values of the matrices that make AdaLN vectors.
        words: values of the largest table of words.
        width: values a token.
    """

    text: Mapping[str, int]
    vae: int
    transformer: int
    blocks: tuple[int, ...]
    modulation: int
    words: int
    width: int

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return sum(self.text.values()) + self.vae + self.transformer


def counts_of(arch: AnyArchitecture) -> Counts:
    """Of any family."""
    if isinstance(arch, SdxlArchitecture):
        return _sdxl_counts(arch)
    if isinstance(arch, Flux3Architecture):
        return _flux3_counts(arch)
    if isinstance(arch, Flux2Architecture):
        text = {"text_encoder": qwen3_parameters(arch.text, arch.read[-1], has_norms=not arch.is_mistral)}
        transformer, words = flux2_parameters(arch.transformer), arch.text["vocab_size"] * arch.text["hidden_size"]
        blocks, modulation = flux2_blocks(arch.transformer), _FLUX2_MODULATION * flux2_width(arch.transformer) ** 2
        width = flux2_width(arch.transformer)
    else:
        text = {"text_encoder": clip_parameters(arch.clip), "text_encoder_2": t5_parameters(arch.t5)}
        transformer, words = transformer_parameters(arch.transformer), arch.t5["vocab_size"] * arch.t5["d_model"]
        blocks, modulation = flux1_blocks(arch.transformer), modulation_parameters(arch.transformer)
        width = _width(_full(arch.transformer))
    return Counts(text, vae_parameters(arch.vae), transformer, blocks, modulation, words, width)


def _flux3_counts(arch: Flux3Architecture) -> Counts:
    """Its modulation is small and stays where the rest is."""
    text = {"text_encoder": qwen3_parameters(arch.text, FLUX3_READ_LAYERS[-1])}
    words, width = arch.text["vocab_size"] * arch.text["hidden_size"], flux3_width(arch.transformer)
    blocks, transformer = flux3_blocks(arch.transformer), flux3_parameters(arch.transformer)
    return Counts(text, vae_parameters(arch.vae), transformer, blocks, 0, words, width)


def _sdxl_counts(arch: SdxlArchitecture) -> Counts:
    """Its UNet counts as the transformer; nothing of it waits on the host or is rounded."""
    clip, clip_2 = arch.clip, arch.clip_2
    projection = clip_2["hidden_size"] * clip_2["projection_dim"]
    text = {"text_encoder": clip_parameters(clip), "text_encoder_2": clip_parameters(clip_2) + projection}
    words, width = clip_2["vocab_size"] * clip_2["hidden_size"], arch.unet["block_out_channels"][0]
    return Counts(text, vae_parameters(arch.vae), unet_parameters(arch.unet), (), 0, words, width)


def modulation_share(transformer: Mapping[str, Any], is_flux2: bool) -> float:
    """What of a transformer's weights makes AdaLN vectors. Args: transformer: its constructor arguments."""
    if is_flux2:
        return _FLUX2_MODULATION * flux2_width(transformer) ** 2 / flux2_parameters(transformer)
    return modulation_parameters(transformer) / transformer_parameters(transformer)


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


def flux1_blocks(transformer: Mapping[str, Any]) -> tuple[int, ...]:
    """Values of each block's matrices, without its modulation."""
    config = _full(transformer)
    kinds = [24] * config["num_layers"] + [12] * config["num_single_layers"]
    return tuple(kind * _width(config) ** 2 for kind in kinds)


def flux2_parameters(transformer: Mapping[str, Any]) -> int:
    """Parameters of diffusers' Flux2Transformer2DModel, which has no biases."""
    config = {**FLUX2_TRANSFORMER, **transformer}
    width, head = flux2_width(config), int(config["attention_head_dim"])
    embedders = (2 if config["guidance_embeds"] else 1) * (config["timestep_guidance_channels"] + width) * width
    ends = (2 * config["in_channels"] + config["joint_attention_dim"]) * width
    norms = (4 * config["num_layers"] + 2 * config["num_single_layers"]) * head
    return int(sum(flux2_blocks(config)) + _FLUX2_MODULATION * width**2 + embedders + ends + norms)


def flux2_blocks(transformer: Mapping[str, Any]) -> tuple[int, ...]:
    """Values of each block's matrices: attention 4 D^2 a stream, the gated MLP three times D by its inner width."""
    config = {**FLUX2_TRANSFORMER, **transformer}
    width = flux2_width(config)
    stream = 4 * width**2 + 3 * width * int(width * config["mlp_ratio"])
    return (2 * stream,) * int(config["num_layers"]) + (stream,) * int(config["num_single_layers"])


def flux2_width(transformer: Mapping[str, Any]) -> int:
    """Values a token."""
    return _width({**FLUX2_TRANSFORMER, **transformer})


def flux3_parameters(transformer: Mapping[str, Any]) -> int:
    """Parameters of diffusers' Flux3Transformer2DModel, which has no biases."""
    config = {**FLUX3_TRANSFORMER, **transformer}
    width, head = flux3_width(config), int(config["attention_head_dim"])
    embedders = (2 if config["flow_map"] else 1) * (config["timestep_channels"] + width) * width
    ends = (2 * config["in_channels"] + config["cond_in_channels"] + config["joint_attention_dim"]) * width
    blocks = flux3_blocks(config)
    return int(sum(blocks) + 2 * len(blocks) * head + (6 * MODES + 2) * width**2 + embedders + ends)


def flux3_blocks(transformer: Mapping[str, Any]) -> tuple[int, ...]:
    """Values of each block's matrices: those of every mode, then those of all together."""
    config = {**FLUX3_TRANSFORMER, **transformer}
    width = flux3_width(config)
    block = 4 * width**2 + 3 * width * int(width * config["mlp_ratio"])
    return (block,) * (MODES * int(config["num_layers"]) + int(config["num_single_layers"]))


def flux3_width(transformer: Mapping[str, Any]) -> int:
    """Values a token."""
    return _width({**FLUX3_TRANSFORMER, **transformer})


def qwen3_parameters(text: Mapping[str, Any], layers: int = READ_LAYERS[-1], has_norms: bool = True) -> int:
    """Parameters of what is held of transformers' Qwen3, or of Mistral, which has no norms of queries and keys."""
    width, head = text["hidden_size"], text["head_dim"]
    heads = 2 * (text["num_attention_heads"] + text["num_key_value_heads"])
    layer = heads * head * width + 3 * width * text["intermediate_size"] + 2 * width + (2 * head if has_norms else 0)
    return int(text["vocab_size"] * width + layers * layer)


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
