"""FLUX.2 behind the engine's `Runner`: the only caller of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from models.accelerator import Accelerator, Launched
from models.auxiliaries import Find, no_auxiliaries
from models.float8 import is_rounded
from models.flux2.components import Flux2Components
from models.tuning import AUTO, Tuning
from pipelines.adapters.ahead import After
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.adapters.linears import Adaptable
from pipelines.engine.request import Admission, Request, Row, latents_of
from pipelines.families.flow import euler_step
from pipelines.families.flux2.admission import Admitter
from pipelines.families.flux2.conditioning import RowState, conditioning_of
from pipelines.families.flux2.limits import Flux2Limits
from pipelines.families.flux2.packed import attention_shape, packed_forward
from pipelines.families.flux2.references import Seen, looking, seen_once
from pipelines.families.layout import PackLayout
from pipelines.families.patched import PatchedPictures
from pipelines.families.prompts import PromptCache
from pipelines.families.replayed import replay_for, replayed
from pipelines.families.split import Split, form_of
from pipelines.ops.compute import Note, choose_compute


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of the packed input that depends on them alone.

    Args: rows: in order. layout, text: one entry a row, and one more behind it for its negative prompt.
    """

    rows: tuple[Row, ...]
    layout: PackLayout
    text: Tensor


class Flux2Runner(PatchedPictures):
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
        super().__init__(components, accelerator)
        self.components = components
        self.limits = Flux2Limits.of(components)
        self._adapters = adapters
        self._adaptable = Adaptable(components.transformer)
        self._host = ThreadPoolExecutor(1, "pictures")
        tuning, shape = tuning.resolved(accelerator.kind), attention_shape(components.transformer)
        rounded = is_rounded(components.transformer)
        self._compute = choose_compute(tuning, *shape, components.dtype, accelerator, note, rounded)
        self._replay = replay_for(components.transformer, self._compute, tuning, accelerator, note)
        forward = partial(packed_forward, components.transformer)
        form = form_of(components.transformer, components.dtype)
        self.split = Split(form, self._compute, forward, is_recorded=self._replay is not None)
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
        seen = {row: self._seen(row) for row in pack.rows}
        predicted = self._predict(pack, latents, modulation, [seen[row] for row, each in asked for _ in each.texts])
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
            is_last = row.steps_left == 1  # a finished picture may wait long for its decoding
            row.state = RowState(
                velocity if row.request.params.preview_every else None, seen=() if is_last else seen[row]
            )
            row.tokens = conditioning_of(row).tokens

    def _seen(self, row: Row) -> Seen:
        """What a row attends to of references that are passed once: by the first row that asks, in its first step."""
        each = conditioning_of(row)
        if each.references is None or each.reference_rope is None:
            return ()
        states = [other.state for other in (row, *row.request.rows) if isinstance(other.state, RowState)]
        if seen := next((state.seen for state in states if state.seen), ()):
            return seen
        transformer, attend = self._adaptable.for_pack(each.uses), self._compute.attend
        seen = seen_once(transformer, each.references, each.reference_rope, each.modulation[-1:], each.uses, attend)
        row.state = RowState(seen=seen)
        return seen

    def _predict(self, pack: _Pack, latents: Tensor, modulation: Tensor, seen: Sequence[Seen]) -> Tensor:
        """The velocity of every entry of the pack, plain where it looks at nothing kept and no adapter takes part.

        Steps with adapters run other modules than those recorded, and what is kept would have to be recorded along.
        """
        looks, uses = any(seen), pack.layout.uses
        if not looks and self.split.takes(pack.layout):
            return self.split.lead(pack.layout, latents, pack.text, modulation)
        transformer = self._adaptable.for_pack(uses)
        compute, replay = self._compute.eager() if uses else self._compute, None if uses or looks else self._replay
        if looks:
            compute = replace(compute, attend=looking(compute.attend, pack.layout.text_lengths, seen))

        def forward(layout: PackLayout, latents: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
            return packed_forward(transformer, layout, latents, text, modulation, compute)

        return replayed(replay, compute, pack.layout, latents, pack.text, modulation, forward)

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
    """(N + M, C): the latents, and the references behind that are part of every step."""
    latents, each = latents_of(row), conditioning_of(row)
    if each.references is None or each.reference_rope is not None:
        return latents
    return torch.cat((latents, each.references))


def _order_key(row: Row) -> tuple[tuple[tuple[str, float], ...], int, int]:
    conditioning, adapters = conditioning_of(row), row.request.params.adapters
    named = tuple((adapter.file, adapter.scale) for adapter in adapters)
    return named, conditioning.image_tokens, conditioning.text_tokens
