"""The pixels of a picture that a mask protects, put back after drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is delivered outside the mask.

    Args: picture: (H, W, 3) uint8. weights: (H, W, 1) int32 in [0, 255], 255 where the drawn pixel stands.
    """

    picture: Tensor
    weights: Tensor

    @classmethod
    def of(cls, picture: Image.Image, mask: Image.Image, blends: bool = True) -> Overlay:
        """Args: picture: RGB. mask: L of the same size. blends: grey mixes both; else only black protects."""
        weights = np.asarray(mask) if blends else np.where(np.asarray(mask) > 0, 255, 0)
        return cls(torch.from_numpy(np.array(picture)), torch.from_numpy(weights.astype(np.int32)[..., None]))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Overlay:
        return Overlay(move(self.picture), move(self.weights))

    def over(self, drawn: Tensor) -> Tensor:
        """(H, W, 3) uint8: exactly `drawn` under white, exactly the picture under black, rounded between."""
        mixed = self.weights * drawn + (255 - self.weights) * self.picture
        return ((mixed + 127) // 255).to(torch.uint8)
