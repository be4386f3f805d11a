"""What ControlNets add to the image tokens of some pictures of a pack, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch
from torch import Tensor


class Lengths(Protocol):
    """Where pictures lie in a pack (PackLayout)."""

    @property
    def text_lengths(self) -> tuple[int, ...]: ...

    @property
    def image_lengths(self) -> tuple[int, ...]: ...

    @property
    def joint_lengths(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """One ControlNet's results for one step.

    Args:
        pictures: which of the pack, in order.
        doubles, singles: (sum N of these pictures, D) for each of its double and single blocks.
    """

    pictures: tuple[int, ...]
    doubles: tuple[Tensor, ...]
    singles: tuple[Tensor, ...]

    def among(self, pictures: Sequence[int]) -> Residuals:
        """The same for a pack of these pictures alone, which must hold all of its own."""
        return Residuals(tuple(pictures.index(picture) for picture in self.pictures), self.doubles, self.singles)


class Additions:
    """Several ControlNets' results, placed in one pack."""

    def __init__(self, residuals: Sequence[Residuals], layout: Lengths, device: torch.device) -> None:
        self._placed = [(each, *_places(each.pictures, layout, device)) for each in residuals]

    def after_double(self, image: Tensor, block: int, blocks: int) -> Tensor:
        """(sum N, D) image tokens after double block `block` of `blocks`, with what belongs there added."""
        for residuals, places, _ in self._placed:
            if residuals.doubles:
                image = image.index_add(0, places, _share(residuals.doubles, block, blocks))
        return image

    def after_single(self, joint: Tensor, block: int, blocks: int) -> Tensor:
        """The same for all tokens (S, D) after a single block."""
        for residuals, _, places in self._placed:
            if residuals.singles:
                joint = joint.index_add(0, places, _share(residuals.singles, block, blocks))
        return joint


def _share(results: Sequence[Tensor], block: int, blocks: int) -> Tensor:
    """A ControlNet has fewer blocks than the transformer. Source: FluxTransformer2DModel.forward."""
    return results[block // ceil(blocks / len(results))]


def _places(pictures: Sequence[int], layout: Lengths, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of these pictures' image tokens among all image tokens, and among all tokens."""
    image, joint = [], []
    for picture in pictures:
        length = layout.image_lengths[picture]
        first = sum(layout.image_lengths[:picture])
        first_joint = sum(layout.joint_lengths[:picture]) + layout.text_lengths[picture]
        image.append(torch.arange(first, first + length, device=device))
        joint.append(torch.arange(first_joint, first_joint + length, device=device))
    return torch.cat(image), torch.cat(joint)
