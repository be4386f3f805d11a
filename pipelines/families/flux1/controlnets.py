"""ControlNets in the packed step: a second, smaller network over the rows that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxControlNetModel
from torch import Tensor

from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.packed import net_blocks
from pipelines.families.flux1.residuals import Residuals
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute


@dataclass(frozen=True, slots=True, eq=False)
class NetUse:
    """What one request's steps need of one ControlNet.

    Args:
        net: the network; kept as long as the request, whatever the pool lets go of.
        text: (T, D) prompt embeddings after its own context embedder.
        modulation: its own AdaLN vectors of every step.
        rope: complex64 (T + N, 1, head_dim / 2).
        scale: factor of what it adds.
        steps: which of the request's steps it takes part in.
    """

    net: FluxControlNetModel
    text: Tensor
    modulation: ModulationTable
    rope: Tensor
    scale: float
    steps: range

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What steps read of it."""
        return self.text, self.rope, *self.modulation.tensors


@dataclass(frozen=True, slots=True, eq=False)
class NetRow:
    """One picture under one ControlNet. Args: picture: its place in the pack. latents, hint: (N, C)."""

    picture: int
    use: NetUse
    step: int
    latents: Tensor
    hint: Tensor


def active_steps(start: float, end: float, steps: int) -> range:
    """The steps that lie wholly between two shares of all. Source: FluxControlNetPipeline.__call__."""
    active = [step for step in range(steps) if step / steps >= start and (step + 1) / steps <= end]
    return range(active[0], active[-1] + 1) if active else range(0)


def residuals_of(rows: Sequence[NetRow], compute: Compute) -> list[Residuals]:
    """What every ControlNet adds in this step; equal ones run once over all their pictures."""
    by_net: dict[int, list[NetRow]] = {}
    for row in rows:
        # A picture may use one network twice, with two hints: those are two runs.
        again = sum(other.picture == row.picture for other in by_net.get(id(row.use.net), ()))
        by_net.setdefault(id(row.use.net) if not again else id(row), []).append(row)
    return [_run(group, compute) for group in by_net.values()]


def _run(rows: Sequence[NetRow], compute: Compute) -> Residuals:
    """Source: FluxControlNetModel.forward."""
    net = rows[0].use.net
    layout = PackLayout(
        text_lengths=tuple(row.use.text.shape[0] for row in rows),
        image_lengths=tuple(row.latents.shape[0] for row in rows),
        rope=torch.cat([row.use.rope for row in rows]),
    )
    latents, hints = torch.cat([row.latents for row in rows]), torch.cat([row.hint for row in rows])
    image = net.x_embedder(latents) + net.controlnet_x_embedder(hints)
    text = torch.cat([row.use.text for row in rows])
    modulation = torch.stack([row.use.modulation.row(row.step) for row in rows])
    doubles, singles = net_blocks(net, layout, text, image, modulation, compute)
    scales = [row.use.scale for row in rows]
    return Residuals(
        pictures=tuple(row.picture for row in rows),
        doubles=_weighted(net.controlnet_blocks, doubles, layout, scales),
        singles=_weighted(net.controlnet_single_blocks, singles, layout, scales),
    )


def _weighted(
    linears: Sequence[torch.nn.Module], samples: Sequence[Tensor], layout: PackLayout, scales: Sequence[float]
) -> tuple[Tensor, ...]:
    def scaled(sample: Tensor) -> Tensor:
        parts = zip(sample.split(layout.image_lengths), scales, strict=True)
        return torch.cat([part * scale for part, scale in parts])

    return tuple(scaled(linear(sample)) for linear, sample in zip(linears, samples, strict=True))
