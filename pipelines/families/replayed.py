"""A family's packed forward through `Replay`: what differs from pack to pack of one layout is handed in as tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from models.accelerator import Accelerator
from models.packed import is_packed
from models.streaming import is_streamed
from models.tuning import Tuning
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute, Note, as_it_is
from pipelines.ops.replay import Replay

Forward = Callable[[PackLayout, Tensor, Tensor, Tensor], Tensor]
"""(layout, latents, text, modulation) -> velocity of every picture; everything else that it reads stays the same."""


def replay_for(
    transformer: nn.Module, compute: Compute, tuning: Tuning, accelerator: Accelerator, note: Note
) -> Replay | None:
    """None where steps launch differently each time: blocks that come and go, weights unpacked as they are read.

    Args: tuning: resolved for this kind of device.
    """
    is_steady = compute.region is as_it_is and not is_packed(transformer) and not is_streamed(transformer)
    return Replay(accelerator, note) if tuning.replay and is_steady else None


def replayed(
    replay: Replay | None,
    compute: Compute,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    forward: Forward,
) -> Tensor:
    """`forward` over this pack, replayed if one of the same lengths came before. Args: compute: what it runs on."""
    if replay is None:
        return forward(layout, latents, text, modulation)

    def work(latents: Tensor, text: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:
        # Pictures of the same lengths may have other sides, so a recording reads rotations of its own.
        held = layout if rope is layout.rope else dataclasses.replace(layout, rope=rope)
        return forward(held, latents, text, modulation)

    key = layout.text_lengths, layout.image_lengths
    lengths = layout.joint_lengths
    inputs = latents, text, modulation, layout.rope
    return replay.run(key, sum(lengths), inputs, work, compute.kept(lengths, latents.device))
