"""SDXL's UNet, counted layer by layer from its constructor arguments: parameters and multiply-adds. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.sdxl.architectures import CLIP_TOKENS


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. Args: level: how often sides were halved before it.

    parameters: with biases and norms. per_cell, per_picture: multiply-adds of a latent cell at its level, and of the
    whole picture whatever its size. attends: width of its attention over all cells, and as much over the prompt.
    """

    level: int
    parameters: int
    per_cell: int = 0
    per_picture: int = 0
    attends: int = 0


def unet_parameters(unet: Mapping[str, Any]) -> int:
    """Parameters of diffusers' UNet2DConditionModel."""
    return sum(layer.parameters for layer in _layers(unet))


def unet_flops(unet: Mapping[str, Any], height: int, width: int) -> int:
    """One forward over one picture and one prompt. Args: height, width: in latent cells."""
    total = 0
    for layer in _layers(unet):
        cells = _side(height, layer.level) * _side(width, layer.level)
        mixing = 2 * cells * (cells + CLIP_TOKENS) * layer.attends
        total += layer.per_picture + cells * layer.per_cell + mixing
    return 2 * total


def _side(side: int, level: int) -> int:
    for _ in range(level):
        side = (side + 1) // 2
    return side


def _layers(unet: Mapping[str, Any]) -> Iterator[Layer]:
    channels, depth = list(unet["block_out_channels"]), len(unet["block_out_channels"])
    first, embedded = channels[0], 4 * channels[0]
    yield _conv(0, unet["in_channels"], first)
    for inner in (first, unet["projection_class_embeddings_input_dim"]):
        yield _vector(inner, embedded)
        yield _vector(embedded, embedded)
    skips = [first]
    before = first
    for level, after in enumerate(channels):
        for _ in range(unet["layers_per_block"]):
            yield from _block(unet, level, before, after, unet["down_block_types"][level])
            before = after
            skips.append(after)
        if level < depth - 1:
            yield _conv(level + 1, after, after)
            skips.append(after)
    yield from _block(unet, depth - 1, before, before, "CrossAttn")
    yield from _resnet(depth - 1, before, before, embedded)
    for index, level in enumerate(reversed(range(depth))):
        after = channels[level]
        for _ in range(unet["layers_per_block"] + 1):
            yield from _block(unet, level, before + skips.pop(), after, unet["up_block_types"][index])
            before = after
        if level > 0:
            yield _conv(level - 1, after, after)
    yield Layer(0, 2 * first)
    yield _conv(0, first, unet["out_channels"])


def _block(unet: Mapping[str, Any], level: int, before: int, after: int, kind: str) -> Iterator[Layer]:
    """A residual block, and where its kind has them, transformer blocks behind it."""
    yield from _resnet(level, before, after, 4 * unet["block_out_channels"][0])
    if not kind.startswith("CrossAttn"):
        return
    yield Layer(level, 2 * after + 2 * (after**2 + after), 2 * after**2)
    prompt = 2 * unet["cross_attention_dim"] * after
    for _ in range(unet["transformer_layers_per_block"][level]):
        # Attention over cells has four matrices, over the prompt two of the cells and two of the prompt; GEGLU has 12.
        matrices = (4 + 2 + 12) * after**2
        biases = 6 * after + 2 * after + 8 * after + after
        yield Layer(level, matrices + prompt + biases, matrices, CLIP_TOKENS * prompt, after)


def _resnet(level: int, before: int, after: int, embedded: int) -> Iterator[Layer]:
    yield Layer(level, 2 * before + 2 * after)
    yield _conv(level, before, after)
    yield _conv(level, after, after)
    yield _vector(embedded, after)
    if before != after:
        yield Layer(level, before * after + after, before * after)


def _conv(level: int, before: int, after: int) -> Layer:
    return Layer(level, 9 * before * after + after, 9 * before * after)


def _vector(before: int, after: int) -> Layer:
    """A linear layer over one vector of the picture."""
    return Layer(0, before * after + after, 0, before * after)
