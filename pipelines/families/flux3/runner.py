"""FLUX.3 behind the engine's `Runner`: the only caller of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from models.accelerator import Accelerator, Launched
from models.auxiliaries import Find, no_auxiliaries
from models.float8 import is_rounded
from models.flux3.components import Flux3Components
from models.streaming import is_streamed
from models.tuning import AUTO, Tuning
from pipelines.adapters.ahead import After
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.request import Admission, Request, Row, latents_of
from pipelines.families.flow import euler_step
from pipelines.families.flux2.conditioning import RowState
from pipelines.families.flux3.admission import Admitter
from pipelines.families.flux3.conditioning import Conditioning, conditioning_of
from pipelines.families.flux3.layout import Layout, Mode
from pipelines.families.flux3.limits import Flux3Limits
from pipelines.families.flux3.packed import Modulation, attention_shape, packed_forward
from pipelines.families.patched import PatchedPictures
from pipelines.families.prompts import PromptCache
from pipelines.ops.attention import READS_OFFSETS
from pipelines.ops.compute import Note, choose_compute


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of the packed input that depends on them alone.

    Args: rows: in order. layout, beside: one entry a row, and one more behind it for its negative prompt.
    """

    rows: tuple[Row, ...]
    layout: Layout
    beside: dict[Mode, Tensor]


class Flux3Runner(PatchedPictures):
    """FLUX.3 over stock diffusers modules: text to image, with or without pictures to look at.

    Args: adapters: there are none for it yet; its limits say so.
    """

    def __init__(
        self,
        components: Flux3Components,
        accelerator: Accelerator,
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        prompt_cache_bytes: int = 256 << 20,
        adapters: AdapterCache = NO_ADAPTERS,
        find: Find = no_auxiliaries,
    ) -> None:
        super().__init__(components, accelerator)
        self.components = components
        self.limits = Flux3Limits.of(components)
        self._host = ThreadPoolExecutor(1, "pictures")
        tuning, shape = tuning.resolved(accelerator.kind), attention_shape(components.transformer)
        rounded = is_rounded(components.transformer)
        self._compute = choose_compute(tuning, *shape, components.dtype, accelerator, note, rounded).eager()
        self._pack: _Pack | None = None
        # Admission computes beside the steps: not with what belongs to them, buffers of blocks or kept offsets.
        self._begins = not (
            components.is_flow_map or is_streamed(components.transformer) or self._compute.attend in READS_OFFSETS
        )
        self._admitter = Admitter(
            components, self.limits, accelerator, PromptCache(prompt_cache_bytes), self._compute, begins=self._begins
        )

    def admit(self, request: Request) -> Launched[Admission]:
        # Resizing takes milliseconds of a processor: no reason to launch the steps of others later.
        prepared = self._host.submit(self._admitter.prepare, request) if request.pictures else None

        @torch.inference_mode()
        def work() -> Admission:
            return self._admitter.admit(request.params, [] if prepared is None else prepared.result())

        def launch() -> Launched[Admission]:
            return self._accelerator.launch("text", work, waits=False)

        return launch() if prepared is None else After([prepared], launch)

    @torch.inference_mode()
    def denoise(self, rows: Sequence[Row]) -> None:
        pack = self._packed(rows)
        asked = [(row, conditioning_of(row)) for row in pack.rows]
        inputs = [latents_of(row) for row, each in asked for _ in each.texts]
        latents = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        predicted = packed_forward(
            self.components.transformer,
            pack.layout,
            latents,
            pack.beside,
            _modulation(asked),
            self._compute,
            is_begun=self._begins,
        )
        velocities, advanced = iter(predicted.split(pack.layout.of("image"))), []
        for row, each in asked:
            velocity, *against = (next(velocities) for _ in each.texts)
            for negative in against:
                velocity = negative + each.guidance * (velocity - negative)
            advanced.append((row, euler_step(latents_of(row), velocity, each.sigma_steps[row.step_index]), velocity))
        for row, latents, velocity in advanced:
            row.latents = latents
            row.state = RowState(velocity if row.request.params.preview_every else None)

    def _packed(self, rows: Sequence[Row]) -> _Pack:
        """The pack of these rows, kept while they stay the same; equal sizes stand together."""
        ordered = tuple(sorted(rows, key=lambda row: conditioning_of(row).lengths))
        if self._pack is None or self._pack.rows != ordered:
            held = [conditioning_of(row) for row in ordered]
            # Made on another stream: its memory must not be reused before the steps have read it.
            for row, each in zip(ordered, held, strict=True):
                self._accelerator.adopt(*each.tensors, latents_of(row))
            rope = [part for each in held for text in each.text_ropes for part in (text, each.picture_rope)]
            layout = Layout(tuple(length for each in held for length in each.lengths), torch.cat(rope))
            references = [each.references for each in held for _ in each.texts if each.references is not None]
            beside: dict[Mode, Tensor] = {"txt": torch.cat([text for each in held for text in each.texts])}
            self._pack = _Pack(ordered, layout, beside | ({"image_cond": torch.cat(references)} if references else {}))
        return self._pack


def _modulation(asked: Sequence[tuple[Row, Conditioning]]) -> Modulation:
    """Of this step: one row an entry."""
    entries = [(row.step_index, each) for row, each in asked for _ in each.texts]
    return {
        "image": torch.stack([each.image[step] for step, each in entries]),
        "txt": torch.stack([each.text[step % len(each.text)] for step, each in entries]),
        "image_cond": torch.stack([each.reference[step % len(each.reference)] for step, each in entries]),
    }
