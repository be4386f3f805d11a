"""FLUX.2 behind the engine's `Runner`: the only caller of its forward passes."""

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
from models.flux2.components import Flux2Components
from models.tuning import AUTO, Tuning
from pipelines.adapters.ahead import After
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.adapters.linears import Adaptable
from pipelines.engine.request import Admission, Request, Row
from pipelines.engine.runner import Decoded
from pipelines.families.flow import euler_step
from pipelines.families.flux2.admission import Admitter
from pipelines.families.flux2.conditioning import RowState, conditioning_of, latents_of
from pipelines.families.flux2.latents import decodable, unpack
from pipelines.families.flux2.limits import Flux2Limits
from pipelines.families.flux2.packed import attention_shape, packed_forward
from pipelines.families.layout import PackLayout
from pipelines.families.prompts import PromptCache
from pipelines.families.replayed import replay_for, replayed
from pipelines.ops.compute import Note, choose_compute
from pipelines.pictures.decoding import decode_in_memory, delivered
from pipelines.pictures.preview import LatentPreview
from pipelines.pictures.safety import safety_checker


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of the packed input that depends on them alone.

    Args: rows: in order. layout, text: one entry a row, and one more behind it for its negative prompt.
    """

    rows: tuple[Row, ...]
    layout: PackLayout
    text: Tensor


class Flux2Runner:
    """FLUX.2 over stock diffusers modules: text to image, with or without pictures to look at."""

    def __init__(
        self,
        components: Flux2Components,
        accelerator: Accelerator,
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        prompt_cache_bytes: int = 256 << 20,
        adapters: AdapterCache = NO_ADAPTERS,
        find: Find = no_auxiliaries,
    ) -> None:
        self.components = components
        self.limits = Flux2Limits.of(components)
        self._accelerator = accelerator
        self._adapters = adapters
        self._adaptable = Adaptable(components.transformer)
        self._host = ThreadPoolExecutor(1, "pictures")
        tuning, shape = tuning.resolved(accelerator.kind), attention_shape(components.transformer)
        self._compute = choose_compute(tuning, *shape, components.dtype, accelerator, note)
        self._replay = replay_for(components.transformer, self._compute, tuning, accelerator, note)
        self._safety = safety_checker(components.safety)
        self.has_safety_checker = self._safety is not None
        self._preview: LatentPreview | None = None
        self._pack: _Pack | None = None
        self._admitter = Admitter(
            components, self.limits, accelerator, PromptCache(prompt_cache_bytes), adapters, self._adaptable
        )

    def admit(self, request: Request) -> Launched[Admission]:
        # Resizing takes milliseconds of a processor: no reason to launch the steps of others later.
        prepared = self._host.submit(self._admitter.prepare, request) if request.pictures else None

        @torch.inference_mode()
        def work() -> Admission:
            return self._admitter.admit(request.params, [] if prepared is None else prepared.result())

        def launch() -> Launched[Admission]:
            return self._accelerator.launch("text", work, waits=False)

        return self._adapters.launch(
            self.components, request.params.adapters, launch if prepared is None else lambda: After([prepared], launch)
        )

    @torch.inference_mode()
    def denoise(self, rows: Sequence[Row]) -> None:
        pack = self._packed(rows)
        asked = [(row, conditioning_of(row)) for row in pack.rows]
        inputs = [_model_input(row) for row, each in asked for _ in each.texts]
        latents = inputs[0] if len(inputs) == 1 else torch.cat(inputs)  # alone it keeps its layout, see `initial_noise`
        modulation = torch.stack([each.modulation[row.step_index] for row, each in asked for _ in each.texts])
        predicted = self._predict(pack, latents, modulation)
        velocities, advanced = iter(predicted.split(pack.layout.image_lengths)), []
        for row, each in asked:
            latents = latents_of(row)
            # Reference tokens behind are only looked at.
            velocity, *against = (next(velocities)[: latents.shape[0]] for _ in each.texts)
            for negative in against:
                velocity = negative + each.guidance * (velocity - negative)
            advanced.append((row, euler_step(latents, velocity, each.sigma_steps[row.step_index]), velocity))
        for row, latents, velocity in advanced:
            row.latents = latents
            row.state = RowState(velocity if row.request.params.preview_every else None)

    def _predict(self, pack: _Pack, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity of every entry of the pack. Steps with adapters run other modules than those recorded."""
        uses = pack.layout.uses
        transformer = self._adaptable.for_pack(uses)
        compute, replay = (self._compute.eager(), None) if uses else (self._compute, self._replay)

        def forward(layout: PackLayout, latents: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
            return packed_forward(transformer, layout, latents, text, modulation, compute)

        return replayed(replay, compute, pack.layout, latents, pack.text, modulation, forward)

    def decode(self, row: Row) -> Launched[Decoded]:
        latents, params, sides = latents_of(row), row.request.params, conditioning_of(row).sides

        @torch.inference_mode()
        def work() -> Decoded:
            vae = self.components.vae
            picture = decode_in_memory(vae, decodable(vae, unpack(latents, *sides)), self._accelerator)[0]
            return delivered(picture, latents, params, self._accelerator)

        return self._accelerator.launch("vae", work)

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        checker = self._safety
        assert checker is not None, "this model has no safety checker"
        return self._accelerator.launch("safety", lambda: checker.unsafe_probability(pixels), waits=False)

    @torch.inference_mode()
    def preview(self, row: Row) -> NDArray[np.uint8] | None:
        if self._preview is None:
            self._preview = LatentPreview(self._decode_plainly, self.components.channels, self.components.device)
        conditioning, state = conditioning_of(row), row.state
        if not isinstance(state, RowState) or state.velocity is None:
            return None
        # Where the straight line from here along the predicted velocity ends: the picture expected at sigma 0.
        expected = latents_of(row) - conditioning.sigmas[row.step_index] * state.velocity
        rendered: NDArray[np.uint8] = self._preview.render(unpack(expected, *conditioning.sides)[0]).cpu().numpy()
        return rendered

    def _decode_plainly(self, patches: Tensor) -> Tensor:
        vae = self.components.vae
        decoded: Tensor = vae.decode(decodable(vae, patches), return_dict=False)[0]
        return decoded

    def _packed(self, rows: Sequence[Row]) -> _Pack:
        """The pack of these rows, kept while they stay the same; equal adapters stand together, then equal sizes."""
        ordered = tuple(sorted(rows, key=_order_key))
        if self._pack is None or self._pack.rows != ordered:
            entries = [(conditioning_of(row), text) for row in ordered for text in conditioning_of(row).texts]
            # Made on another stream: its memory must not be reused before the steps have read it.
            for row in ordered:
                self._accelerator.adopt(*conditioning_of(row).tensors, latents_of(row))
            layout = PackLayout(
                text_lengths=tuple(each.text_tokens for each, _ in entries),
                image_lengths=tuple(each.image_tokens for each, _ in entries),
                rope=torch.cat([each.rope for each, _ in entries]),
                uses=tuple(each.uses for each, _ in entries) if any(each.uses for each, _ in entries) else (),
            )
            self._pack = _Pack(ordered, layout, torch.cat([text for _, text in entries]))
        return self._pack


def _model_input(row: Row) -> Tensor:
    """(N + M, C): the latents, and the references behind."""
    latents, references = latents_of(row), conditioning_of(row).references
    return latents if references is None else torch.cat((latents, references))


def _order_key(row: Row) -> tuple[tuple[tuple[str, float], ...], int, int]:
    conditioning, adapters = conditioning_of(row), row.request.params.adapters
    named = tuple((adapter.file, adapter.scale) for adapter in adapters)
    return named, conditioning.image_tokens, conditioning.text_tokens
