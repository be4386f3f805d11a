"""The AdaLN vectors of a request's steps, computed once: a step then need not read 27 % of FLUX.1's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.adapters.binding import NOTHING, Segments, bound
from pipelines.families.flux1.packed import Network, modulation_rows


class ModulationTable:
    """(steps, K) vectors, computed in chunks of consecutive steps; only the last chunk is kept.

    They depend on timestep, guidance and pooled prompt, not on the picture, so the rows of a request share them.

    Args:
        sigmas: (steps,) float32 on the CPU: where each step begins.
        pooled: (1, P) in the model's dtype.
        chunk: steps computed at a time.
        row_by_row: whether every step is a product of its own, as in the stock pipeline; a CPU rounds products of
            one row and of many differently. An accelerator takes the whole chunk as one product.
        upload: to the device, without waiting for it.
        segments: the request's adapters, if `transformer` takes any.
    """

    def __init__(
        self,
        transformer: Network,
        sigma_config: Mapping[str, Any],
        sigmas: Tensor,
        guidance_scale: float,
        pooled: Tensor,
        chunk: int,
        row_by_row: bool,
        upload: Callable[[Tensor], Tensor],
        segments: Segments = NOTHING,
    ) -> None:
        self._transformer = transformer
        self._segments = segments
        self._pooled = pooled
        self._chunk = chunk
        self._group = 1 if row_by_row else chunk
        train_steps = float(sigma_config.get("num_train_timesteps", 1000))
        # The stock pipeline rounds timesteps to the model's dtype, too: 987.65 becomes 988.0 in bfloat16.
        self._timesteps = upload((sigmas * train_steps).to(pooled.dtype)) / 1000 * 1000
        self._guidance = torch.full_like(self._timesteps, guidance_scale) * 1000
        self._start = 0
        self._rows = self._compute(0)

    def row(self, step: int) -> Tensor:
        """(K,) vectors of one step; `step` mostly grows."""
        start = step - step % self._chunk
        if start != self._start:
            self._start, self._rows = start, self._compute(start)
        return self._rows[step - start]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the device holds of it."""
        return self._pooled, self._timesteps, self._guidance, self._rows

    def _compute(self, start: int) -> Tensor:
        timesteps = self._timesteps[start : start + self._chunk].split(self._group)
        guidance = self._guidance[start : start + self._chunk].split(self._group)
        with bound(self._segments):
            return torch.cat(
                [
                    modulation_rows(self._transformer, self._embed(t, g))
                    for t, g in zip(timesteps, guidance, strict=True)
                ]
            )

    def _embed(self, timesteps: Tensor, guidance: Tensor) -> Tensor:
        embed = self._transformer.time_text_embed
        takes_guidance = bool(self._transformer.config.guidance_embeds)
        embedded: Tensor = (
            embed(timesteps, guidance, self._pooled) if takes_guidance else embed(timesteps, self._pooled)
        )
        return embedded
