"""A transformer's blocks in host memory: two are on the device at a time, one that computes and the next on its way.

Every block's matrices lie in one piece of (pinned) host memory and are views of one of two buffers on the device, so a
block comes in by one copy, on a stream beside the steps, and nothing is allocated. Same matrices, same products: same
pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import Flux3Transformer2DModel
from torch import Tensor, nn

from models.accelerator import Accelerator, Launched, host_copy

_ALIGNMENT = 256
_SLOTS = 2


@dataclass(frozen=True, slots=True)
class _Place:
    """A matrix of a block: the module and name that it has, and where it lies in the block's piece of memory."""

    module: nn.Module
    name: str
    start: int

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = getattr(self.module, self.name)
        return tensor

    def put(self, tensor: Tensor) -> None:
        is_parameter = self.name in self.module._parameters
        setattr(self.module, self.name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


class BlockStream:
    """The blocks' memory on either side. Used by the thread that launches the steps.

    Args: sizes: bytes of every block, in the order of their use.
    """

    def __init__(self, sizes: Sequence[int], accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._hosts: list[Tensor] = []
        largest = [max(sizes[slot::_SLOTS], default=0) for slot in range(_SLOTS)]
        self._slots = [torch.empty(size, dtype=torch.uint8, device=accelerator.device) for size in largest]
        self._holds: list[int | None] = [None] * _SLOTS
        self._copies: list[Launched[object] | None] = [None] * _SLOTS
        self._current: int | None = None

    @property
    def device_bytes(self) -> int:
        return sum(slot.nbytes for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        return sum(host.nbytes for host in self._hosts)

    def add(self, host: Tensor) -> Tensor:
        """Take the next block's bytes, on the host; returns where they will be on the device."""
        self._hosts.append(host_copy(host, self._accelerator.device))
        return self._slots[(len(self._hosts) - 1) % _SLOTS][: host.nbytes]

    def enter(self, block: int) -> None:
        """Before work of a block is launched: its matrices are there, and the next block's set out."""
        if block == self._current:
            return
        self._fetch(block)
        copy = self._copies[block % _SLOTS]
        assert copy is not None
        self._accelerator.follow(copy)
        self._current = block
        following = (block + 1) % len(self._hosts)
        if following % _SLOTS != block % _SLOTS:
            self._fetch(following)

    def _fetch(self, block: int) -> None:
        """Launch the copy of a block, after all work that may still read what it overwrites."""
        slot = block % _SLOTS
        if self._holds[slot] != block:
            host = self._hosts[block]
            target = self._slots[slot][: host.nbytes]
            self._holds[slot] = block
            self._copies[slot] = self._accelerator.launch("blocks", lambda: target.copy_(host, non_blocking=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockStream:
        return self  # a copy of the transformer over the same weights uses the same buffers


def stream_blocks(transformer: nn.Module, accelerator: Accelerator) -> None:
    """Leave the matrices of all blocks on the host, and bring each block's in when the first of its layers is called.

    Args: transformer: of diffusers, on the host, in the form in which it will compute; done already, it stays so.
    """
    if is_streamed(transformer):
        return
    blocks = blocks_of(transformer)
    places = [_places(block) for block in blocks]
    stream = BlockStream([_size(held) for held in places], accelerator)
    for index, (block, held) in enumerate(zip(blocks, places, strict=True)):
        where = stream.add(_joined(held))
        for place in held:
            old = place.tensor
            place.put(where[place.start : place.start + old.nbytes].view(old.dtype).view(old.shape))
        for layer in {place.module: None for place in held}:
            layer.register_forward_pre_hook(partial(_enter, stream, index))
        for layer in block.modules():  # a packed weight is read by the layer around it
            if any(child in {place.module for place in held} for child in layer.children()):
                layer.register_forward_pre_hook(partial(_enter, stream, index))
    transformer.block_stream = stream  # type: ignore[assignment]


def blocks_of(transformer: Any) -> list[nn.Module]:
    """All blocks of a transformer in the order of their use: FLUX.3 has some for every kind of token first."""
    if isinstance(transformer, Flux3Transformer2DModel):
        modes = (transformer.txt_mode_blocks, *transformer.mode_blocks.values())
        return [*(block for blocks in modes for block in blocks), *transformer.single_transformer_blocks]
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def is_streamed(transformer: nn.Module) -> bool:
    """Whether its blocks wait on the host."""
    return isinstance(getattr(transformer, "block_stream", None), BlockStream)


def _enter(stream: BlockStream, block: int, module: nn.Module, inputs: object) -> None:
    """A forward pre-hook."""
    stream.enter(block)


def _places(block: nn.Module) -> list[_Place]:
    """The block's matrices; vectors stay on the device."""
    places, start = [], 0
    for module in block.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.ndim >= 2:
                places.append(_Place(module, name, start))
                start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places


def _size(places: Sequence[_Place]) -> int:
    return places[-1].start + places[-1].tensor.nbytes if places else 0


def _joined(places: Sequence[_Place]) -> Tensor:
    """One piece of memory with all of them."""
    joined = torch.empty(_size(places), dtype=torch.uint8)
    for place in places:
        tensor = place.tensor
        joined[place.start : place.start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return joined
