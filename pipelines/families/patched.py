"""Pictures out of FLUX.2's and FLUX.3's latents, 2 x 2 patches as tokens: decoded, judged, shown on the way."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import Accelerator, Launched
from pipelines.engine.request import Row, latents_of
from pipelines.engine.runner import Decoded
from pipelines.families.flux2.conditioning import RowState
from pipelines.families.flux2.latents import decodable, unpack
from pipelines.pictures.decoding import decode_in_memory, delivered
from pipelines.pictures.preview import LatentPreview
from pipelines.pictures.safety import safety_checker


class Drawn(Protocol):
    """What of a request's conditioning its pictures depend on."""

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in tokens."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels."""


class PatchedPictures:
    """The half of a runner that knows no transformer. Args: components: with such a VAE, `channels` and `safety`."""

    def __init__(self, components: Any, accelerator: Accelerator) -> None:
        self._vae, self._channels = components.vae, components.channels
        self._accelerator = accelerator
        self._safety = safety_checker(components.safety)
        self.has_safety_checker = self._safety is not None
        self._preview: LatentPreview | None = None

    def decode(self, row: Row) -> Launched[Decoded]:
        latents, params, sides = latents_of(row), row.request.params, _drawn(row).sides

        @torch.inference_mode()
        def work() -> Decoded:
            picture = decode_in_memory(self._vae, decodable(self._vae, unpack(latents, *sides)), self._accelerator)[0]
            return delivered(picture, latents, params, self._accelerator)

        return self._accelerator.launch("vae", work)

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        checker = self._safety
        assert checker is not None, "this model has no safety checker"
        return self._accelerator.launch("safety", lambda: checker.unsafe_probability(pixels), waits=False)

    @torch.inference_mode()
    def preview(self, row: Row) -> NDArray[np.uint8] | None:
        if self._preview is None:
            self._preview = LatentPreview(self._decode_plainly, self._channels, self._vae.device)
        drawn, state = _drawn(row), row.state
        if not isinstance(state, RowState) or state.velocity is None:
            return None
        # Where the straight line from here along the predicted velocity ends: the picture expected at sigma 0.
        expected = latents_of(row) - drawn.sigmas[row.step_index] * state.velocity
        rendered: NDArray[np.uint8] = self._preview.render(unpack(expected, *drawn.sides)[0]).cpu().numpy()
        return rendered

    def _decode_plainly(self, patches: Tensor) -> Tensor:
        decoded: Tensor = self._vae.decode(decodable(self._vae, patches), return_dict=False)[0]
        return decoded


def _drawn(row: Row) -> Drawn:
    conditioning: Any = row.request.conditioning
    assert conditioning is not None, "the request was not admitted"
    drawn: Drawn = conditioning
    return drawn
