"""First steps on half the sides: from noise of the full size to a small picture, and back in frequency space.

In much noise a picture's fine detail drowns, so these steps may leave it out. The small latents are the low frequencies
of the full ones, by the orthonormal discrete cosine transform: white noise stays white, and is the full picture's own.
A picture, unlike noise, becomes weaker by `ratio` (the square root of the areas' quotient) on the way, so the small
latents stand at another noise level: where the full ones are (1 - s) X + s E, the small ones, divided by d, are

    (1 - s') x + s' e,    s' = s / d,    d = s + ratio (1 - s)

and `d` times these are exactly the low frequencies of the full ones. The high ones are the noise that was left out.
The schedule is the full picture's; its first steps are taken at s'.

Source: the shift of noise levels by resolution, Esser et al. 2024 (Stable Diffusion 3), 5.3.2; steps at growing
resolution, Tian et al. 2025 (bottleneck sampling) and Jeong et al. 2025 (RALU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.accelerator import Accelerator
from pipelines.families.flux1.sampling import pack_latents, unpack_latents


def coarse_levels(sigmas: Tensor, ratio: float) -> Tensor:
    """The noise levels s' of the small picture that belong to those of the full one."""
    return sigmas / (sigmas + ratio * (1 - sigmas))


@dataclass(frozen=True, slots=True, eq=False)
class Enlargement:
    """Between the two sizes of a picture, in latent cells.

    Args:
        rows: (H, h) float32, orthonormal columns: the low frequencies of H cells from those of h.
        columns: (W, w), the same across.
        level: the noise level of the full picture at which it is enlarged, in (0, 1).
    """

    rows: Tensor
    columns: Tensor
    level: float

    @classmethod
    def between(
        cls, small: tuple[int, int], large: tuple[int, int], level: float, accelerator: Accelerator
    ) -> Enlargement:
        """Args: small, large: height and width in latent cells."""
        rows, columns = (_frequencies(*sides) for sides in zip(small, large, strict=True))
        return cls(accelerator.to_device(rows), accelerator.to_device(columns), level)

    @property
    def ratio(self) -> float:
        (height, small_height), (width, small_width) = self.rows.shape, self.columns.shape
        return math.sqrt(height * width / (small_height * small_width))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.rows, self.columns

    def shrink(self, noise: Tensor) -> Tensor:
        """The low frequencies (n, C) of the full noise (N, C), in its dtype: white, too."""
        cells = unpack_latents(noise[None], self.rows.shape[0], self.columns.shape[0])
        return pack_latents(self._small(cells.float()))[0].to(noise.dtype)

    def enlarge(self, latents: Tensor, noise: Tensor) -> Tensor:
        """The full latents (N, C) at `level`. Args: latents: (n, C) after the coarse steps. noise: (N, C)."""
        full = unpack_latents(noise[None], self.rows.shape[0], self.columns.shape[0]).float()
        common = self.level + self.ratio * (1 - self.level)
        known = common * self._large(self._cells(latents)) + self.level * (full - self._large(self._small(full)))
        return pack_latents(known)[0].to(latents.dtype)

    def enlarge_picture(self, latents: Tensor) -> Tensor:
        """A picture without noise (n, C) at the full size (N, C)."""
        return pack_latents(self.ratio * self._large(self._cells(latents)))[0].to(latents.dtype)

    def _cells(self, latents: Tensor) -> Tensor:
        return unpack_latents(latents[None], self.rows.shape[1], self.columns.shape[1]).float()

    def _small(self, cells: Tensor) -> Tensor:
        return self.rows.T @ cells @ self.columns

    def _large(self, cells: Tensor) -> Tensor:
        return self.rows @ cells @ self.columns.T


def _frequencies(small: int, large: int) -> Tensor:
    """(large, small) float32: to `small` values, through their cosine transform, the `large` ones of the same waves."""
    return (_cosines(large)[:small].T @ _cosines(small)).float()


def _cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (type 2) as a float64 matrix, a wave a row."""
    waves, places = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * waves * (2 * places + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
