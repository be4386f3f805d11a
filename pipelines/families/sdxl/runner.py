"""SDXL behind the engine's `Runner`: the only caller of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import Accelerator, Launched
from models.auxiliaries import Find, no_auxiliaries
from models.sdxl.components import SdxlComponents
from models.tuning import AUTO, Tuning
from pipelines.adapters.ahead import After
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.request import Admission, Request, Row, latents_of
from pipelines.engine.runner import Decoded
from pipelines.families.prompts import PromptCache
from pipelines.families.sdxl.admission import Admitter
from pipelines.families.sdxl.conditioning import Conditioning, RowState, conditioning_of, state_of
from pipelines.families.sdxl.latents import decodable
from pipelines.families.sdxl.limits import SdxlLimits
from pipelines.families.sdxl.prepare import Prepared, prepared
from pipelines.families.sdxl.schedule import advanced
from pipelines.ops.compute import Note
from pipelines.pictures.decoding import decode_in_memory, delivered
from pipelines.pictures.preview import LatentPreview
from pipelines.pictures.safety import safety_checker


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of its input that depends on them alone; see Conditioning."""

    rows: tuple[Row, ...]
    texts: Tensor
    pooled: Tensor
    time_ids: Tensor


class SdxlRunner:
    """SDXL over stock diffusers modules: from text, from a picture, behind a mask. Rows of a step are of one size."""

    def __init__(
        self,
        components: SdxlComponents,
        accelerator: Accelerator,
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        prompt_cache_bytes: int = 256 << 20,
        adapters: AdapterCache = NO_ADAPTERS,
        find: Find = no_auxiliaries,
    ) -> None:
        self.components = components
        self.limits = SdxlLimits.of(components)
        self._accelerator = accelerator
        self._host = ThreadPoolExecutor(1, "pictures")
        self._safety = safety_checker(components.safety)
        self.has_safety_checker = self._safety is not None
        self._preview: LatentPreview | None = None
        self._pack: _Pack | None = None
        self._admitter = Admitter(components, self.limits, accelerator, PromptCache(prompt_cache_bytes))

    def admit(self, request: Request) -> Launched[Admission]:
        # Resizing takes milliseconds of a processor: no reason to launch the steps of others later.
        ready = self._host.submit(prepared, request, self.limits) if request.pictures else None

        @torch.inference_mode()
        def work() -> Admission:
            return self._admitter.admit(request.params, Prepared() if ready is None else ready.result())

        def launch() -> Launched[Admission]:
            return self._accelerator.launch("text", work, waits=False)

        return launch() if ready is None else After([ready], launch)

    @torch.inference_mode()
    def denoise(self, rows: Sequence[Row]) -> None:
        pack = self._packed(rows)
        asked = [(row, conditioning_of(row), state_of(row)) for row in pack.rows]
        times = [each.timesteps[row.step_index] for row, each, _ in asked]
        inputs = [
            state.scheduler.scale_model_input(torch.cat([latents_of(row)] * len(each.texts)), time)
            for (row, each, state), time in zip(asked, times, strict=True)
        ]
        repeated = [time for (_, each, _), time in zip(asked, times, strict=True) for _ in each.texts]
        predicted: Tensor = self.components.unet(
            torch.cat(inputs),
            torch.stack(repeated),
            encoder_hidden_states=pack.texts,
            added_cond_kwargs={"text_embeds": pack.pooled, "time_ids": pack.time_ids},
            return_dict=False,
        )[0]
        parts = predicted.split([len(each.texts) for _, each, _ in asked])
        after = [
            (row, *_stepped(row, each, state, part, time))
            for (row, each, state), part, time in zip(asked, parts, times, strict=True)
        ]
        for row, latents, state in after:
            row.latents, row.state = latents, state

    def decode(self, row: Row) -> Launched[Decoded]:
        latents, params, overlay = latents_of(row), row.request.params, conditioning_of(row).overlay

        @torch.inference_mode()
        def work() -> Decoded:
            vae = self.components.vae
            picture = decode_in_memory(vae, decodable(vae, latents), self._accelerator)[0]
            return delivered(picture, latents, params, self._accelerator, overlay)

        return self._accelerator.launch("vae", work)

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        checker = self._safety
        assert checker is not None, "this model has no safety checker"
        return self._accelerator.launch("safety", lambda: checker.unsafe_probability(pixels), waits=False)

    @torch.inference_mode()
    def preview(self, row: Row) -> NDArray[np.uint8] | None:
        if self._preview is None:
            self._preview = LatentPreview(self._decode_plainly, self.components.channels, self.components.device)
        state = row.state
        if not isinstance(state, RowState) or state.expected is None:
            return None
        rendered: NDArray[np.uint8] = self._preview.render(state.expected[0]).cpu().numpy()
        return rendered

    def _decode_plainly(self, latents: Tensor) -> Tensor:
        vae = self.components.vae
        decoded: Tensor = vae.decode(decodable(vae, latents), return_dict=False)[0]
        return decoded

    def _packed(self, rows: Sequence[Row]) -> _Pack:
        """The pack of these rows, kept while they stay the same."""
        if self._pack is None or self._pack.rows != tuple(rows):
            each = [conditioning_of(row) for row in rows]
            # Made on another stream: its memory must not be reused before the steps have read it.
            for row in rows:
                state = state_of(row)
                around = [tensor for tensor in (state.clean, state.noise) if tensor is not None]
                self._accelerator.adopt(*conditioning_of(row).tensors, latents_of(row), *around)
            self._pack = _Pack(
                tuple(rows),
                torch.cat([one.texts for one in each]),
                torch.cat([one.pooled for one in each]),
                torch.cat([one.time_ids for one in each]),
            )
        return self._pack


def _stepped(
    row: Row, conditioning: Conditioning, state: RowState, predicted: Tensor, time: Tensor
) -> tuple[Tensor, RowState]:
    """A row's latents and state after a step. Args: predicted: (E, C, h, w) with and without its prompt."""
    if len(predicted) == 2:
        without, told = predicted.chunk(2)
        predicted = without + conditioning.guidance * (told - without)
    scheduler, latents, expected = advanced(state.scheduler, predicted, time, latents_of(row))
    if conditioning.mask is not None and state.clean is not None and state.noise is not None:
        is_last = row.steps_left == 1
        around = state.clean if is_last else scheduler.add_noise(state.clean, state.noise, time[None])
        latents = (1 - conditioning.mask) * around + conditioning.mask * latents
    kept = expected if row.request.params.preview_every else None
    return latents, RowState(scheduler, state.clean, state.noise, kept)
