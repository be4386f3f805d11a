"""FLUX.1 behind the engine's `Runner`: the only caller of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import Accelerator, Broken, Launched
from models.auxiliaries import Find, no_auxiliaries
from models.components import FluxComponents
from models.float8 import is_rounded
from models.tuning import AUTO, Tuning
from pipelines.adapters.ahead import After
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.adapters.linears import Adaptable
from pipelines.engine.request import Admission, Request, Row, latents_of
from pipelines.engine.runner import Decoded
from pipelines.families.flow import add_noise, euler_step
from pipelines.families.flux1.admission import Admitter
from pipelines.families.flux1.coarse import Enlargement
from pipelines.families.flux1.conditioning import Phase, conditioning_of, phase_of, state_of
from pipelines.families.flux1.controlnets import NetRow, residuals_of
from pipelines.families.flux1.helpers import Helpers
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.families.flux1.packed import attention_shape, packed_forward
from pipelines.families.flux1.phases import decoded, enlarged, unscaled
from pipelines.families.flux1.prepare import Prepared
from pipelines.families.flux1.residuals import Additions
from pipelines.families.flux1.sampling import unpack_latents
from pipelines.families.flux1.step_cache import CachedRow, FirstBlockRule, HitRule, StepCache, cached_forward
from pipelines.families.layout import PackLayout
from pipelines.families.prompts import PromptCache
from pipelines.families.replayed import replay_for, replayed
from pipelines.families.split import Split, form_of
from pipelines.ops.compute import Note, choose_compute
from pipelines.pictures.decoding import delivered
from pipelines.pictures.preview import LatentPreview
from pipelines.pictures.safety import safety_checker


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of the packed input that depends on them alone."""

    rows: tuple[Row, ...]
    phases: tuple[Phase, ...]
    layout: PackLayout
    text: Tensor


class FluxRunner:
    """FLUX.1 text-to-image over stock diffusers modules.

    Args: hit_rule: when rows with a step cache skip; benchmarks of random weights force a pattern. adapters, find:
        what requests may name.
    """

    def __init__(
        self,
        components: FluxComponents,
        accelerator: Accelerator,
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        prompt_cache_bytes: int = 256 << 20,
        hit_rule: HitRule | None = None,
        adapters: AdapterCache = NO_ADAPTERS,
        find: Find = no_auxiliaries,
    ) -> None:
        self.components = components
        self._find = find
        self._adapters = adapters
        self._host = ThreadPoolExecutor(1, "pictures")
        self._adaptable = Adaptable(components.transformer)
        self._accelerator = accelerator
        heads, head_dim = attention_shape(components.transformer)
        tuning = tuning.resolved(accelerator.kind)
        rounded = is_rounded(components.transformer)
        self._compute = choose_compute(tuning, heads, head_dim, components.dtype, accelerator, note, rounded)
        self._replay = replay_for(components.transformer, self._compute, tuning, accelerator, note)
        forward = partial(packed_forward, components.transformer)
        form = form_of(components.transformer, components.dtype)
        self.split = Split(form, self._compute, forward, is_recorded=self._replay is not None)
        self._safety = safety_checker(components.safety)
        self._hit_rule = hit_rule or FirstBlockRule()
        self._preview: LatentPreview | None = None
        self._pack: _Pack | None = None
        self.has_safety_checker = self._safety is not None
        self.limits = Flux1Limits.of(components)
        self._admitter = Admitter(
            components, self.limits, accelerator, PromptCache(prompt_cache_bytes), adapters, self._adaptable
        )

    def admit(self, request: Request) -> Launched[Admission]:
        params, helpers = request.params, Helpers.of(request.params, self._find, self.components.transformer)
        # Resizing takes milliseconds of a processor: no reason to launch the steps of others later.
        prepared = self._host.submit(self._admitter.prepare, request, helpers) if request.pictures else None

        @torch.inference_mode()
        def work() -> Admission:
            return self._admitter.admit(params, helpers, Prepared() if prepared is None else prepared.result())

        def launch() -> Launched[Admission]:
            return self._accelerator.launch("text", work, waits=False)

        return self._adapters.launch(
            self.components, params.adapters, launch if prepared is None else lambda: After([prepared], launch)
        )

    @torch.inference_mode()
    def denoise(self, rows: Sequence[Row]) -> None:
        pack = self._packed(rows)
        phases = [phase_of(row) for row in pack.rows]
        modulation = torch.stack([conditioning_of(row).modulation.row(row.step_index) for row in pack.rows])
        steps = torch.stack([p.sigma_steps[r.step_index - p.first] for p, r in zip(phases, pack.rows, strict=True)])
        velocities = self._predict(pack, torch.cat([_model_input(row) for row in pack.rows]), modulation)
        advanced = []
        for row, velocity, step in zip(
            pack.rows, velocities.split(pack.layout.image_lengths), steps.unbind(), strict=True
        ):
            latents = latents_of(row)
            velocity = velocity[: latents.shape[0]]  # reference tokens behind are only looked at
            advanced.append((row, held(row, euler_step(latents, velocity, step)), velocity))
        for row, latents, velocity in advanced:
            row.latents = latents
            state = state_of(row)
            state.velocity = velocity if row.request.params.preview_every else None
            if row.steps_left == 1:
                state.cache = None  # a finished picture may wait long for its decoding
            elif conditioning_of(row).phase(row.step_index + 1) is not phase_of(row):
                self._enter_next_phase(row)

    def _enter_next_phase(self, row: Row) -> None:
        """Enlarge a picture between two phases: in frequency space at once, as pixels beside the steps of others."""
        conditioning, latents = conditioning_of(row), latents_of(row)
        before, after = phase_of(row), conditioning.phase(row.step_index + 1)
        state = state_of(row)
        state.cache = None
        row.tokens = conditioning.text_tokens + after.image_tokens + conditioning.reference_tokens
        try:
            if conditioning.enlargement is not None:
                enlarge_coarse(row, conditioning.enlargement, before.sigmas[-1])
                return
            state.velocity = None
            work = partial(enlarged, self.components, latents, before, after, row.seed, self._accelerator)
            row.pending = self._accelerator.launch("vae", torch.inference_mode()(work))
        except Exception as exc:  # the others have stepped already: it fails this row alone, when it is asked for
            if self._accelerator.is_fatal(exc):
                raise
            row.pending = Broken(exc)

    def _predict(self, pack: _Pack, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity of every row. Where no row has a step cache, nothing is decided and nothing copied."""
        transformer = self._adaptable.for_pack(pack.layout.uses)
        compute = self._compute.eager() if pack.layout.uses else self._compute
        residuals = residuals_of(_net_rows(pack.rows), self._compute)
        if not any(row.request.caches_steps for row in pack.rows):
            if not residuals and self.split.takes(pack.layout):
                return self.split.lead(pack.layout, latents, pack.text, modulation)
            additions = Additions(residuals, pack.layout, latents.device) if residuals else None

            def forward(layout: PackLayout, latents: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
                return packed_forward(transformer, layout, latents, text, modulation, compute, additions)

            replay = None if additions or pack.layout.uses else self._replay
            return replayed(replay, compute, pack.layout, latents, pack.text, modulation, forward)
        cached = [_cached(row) for row in pack.rows]
        velocity, hits = cached_forward(
            transformer, pack.layout, latents, pack.text, modulation, compute, cached, self._hit_rule, residuals
        )
        blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        for row, is_hit in zip(pack.rows, hits, strict=True):
            row.computed = 1 / blocks if is_hit else 1.0
        return velocity

    def decode(self, row: Row) -> Launched[Decoded]:
        conditioning, phase, latents = conditioning_of(row), phase_of(row), latents_of(row)
        params, overlay = row.request.params, conditioning.overlay

        @torch.inference_mode()
        def work() -> Decoded:
            picture = decoded(self.components.vae, latents, phase, self._accelerator)
            return delivered(picture, latents, params, self._accelerator, overlay)

        return self._accelerator.launch("vae", work)

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        checker = self._safety
        assert checker is not None, "this model has no safety checker"
        return self._accelerator.launch("safety", lambda: checker.unsafe_probability(pixels), waits=False)

    @torch.inference_mode()
    def preview(self, row: Row) -> NDArray[np.uint8] | None:
        if self._preview is None:
            self._preview = LatentPreview(self._decode_plainly, self.components.latent_channels, self.components.device)
        phase, velocity = phase_of(row), state_of(row).velocity
        if velocity is None:  # between two phases
            return None
        # Where the straight line from here along the predicted velocity ends: the picture expected at sigma 0.
        expected = latents_of(row) - phase.sigmas[row.step_index - phase.first] * velocity
        unpacked = unpack_latents(expected[None], phase.height, phase.width)[0]
        rendered: NDArray[np.uint8] = self._preview.render(unpacked).cpu().numpy()
        return rendered

    def _decode_plainly(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.components.vae.decode(unscaled(self.components.vae, latents), return_dict=False)[0]
        return decoded

    def _packed(self, rows: Sequence[Row]) -> _Pack:
        """The pack of these rows, kept while they stay the same; equal adapters stand together, then equal sizes."""
        ordered = tuple(sorted(rows, key=_order_key))
        phases = tuple(phase_of(row) for row in ordered)
        if self._pack is None or self._pack.rows != ordered or self._pack.phases != phases:
            conditionings = [conditioning_of(row) for row in ordered]
            # Made on another stream: its memory must not be reused before the steps have read it.
            for conditioning, row in zip(conditionings, ordered, strict=True):
                self._accelerator.adopt(*conditioning.tensors, *state_of(row).tensors, latents_of(row))
            layout = PackLayout(
                text_lengths=tuple(c.text_tokens for c in conditionings),
                image_lengths=tuple(
                    p.image_tokens + c.reference_tokens for p, c in zip(phases, conditionings, strict=True)
                ),
                rope=torch.cat([phase.rope for phase in phases]),
                uses=tuple(c.uses for c in conditionings) if any(c.uses for c in conditionings) else (),
            )
            self._pack = _Pack(ordered, phases, layout, torch.cat([c.text for c in conditionings]))
        return self._pack


def held(row: Row, latents: Tensor) -> Tensor:
    """The row's new latents; where its picture is held, that one at the noise level of the next step."""
    hold, state, phase = conditioning_of(row).hold, state_of(row), phase_of(row)
    if hold is None:
        return latents
    assert state.clean is not None
    assert state.noise is not None
    step = row.step_index - phase.first
    kept = add_noise(state.clean, state.noise, phase.levels[step + 1])
    free = hold.free(step)
    return (1 - free) * kept + free * latents


def enlarge_coarse(row: Row, enlargement: Enlargement, sigma: float) -> None:
    """Bring a row to the full size, and what its preview would show. Args: sigma: its noise level in the small size."""
    small, state = latents_of(row), state_of(row)
    assert state.noise is not None
    row.latents = enlargement.enlarge(small, state.noise)
    if state.velocity is not None:
        picture = enlargement.enlarge_picture(small - sigma * state.velocity)
        state.velocity = (row.latents - picture) / enlargement.level
    state.noise = None


def _model_input(row: Row) -> Tensor:
    """(N + M, in_channels): the latents, what stands beside them, and the references behind."""
    latents, channels, references = latents_of(row), state_of(row).channels, conditioning_of(row).references
    beside = latents if channels is None else torch.cat((latents, channels), dim=-1)
    return beside if references is None else torch.cat((beside, references))


def _order_key(row: Row) -> tuple[tuple[tuple[str, float], ...], int, int]:
    conditioning, adapters = conditioning_of(row), row.request.params.adapters
    named = tuple((adapter.file, adapter.scale) for adapter in adapters)
    return named, phase_of(row).image_tokens + conditioning.reference_tokens, conditioning.text_tokens


def _net_rows(rows: Sequence[Row]) -> list[NetRow]:
    """The ControlNets that take part in the rows' next step."""
    return [
        NetRow(picture, use, row.step_index, latents_of(row), hint)
        for picture, row in enumerate(rows)
        for use, hint in zip(conditioning_of(row).nets, state_of(row).hints, strict=True)
        if row.step_index in use.steps
    ]


def _cached(row: Row) -> CachedRow | None:
    if not row.request.caches_steps or conditioning_of(row).nets:
        return None
    state = state_of(row)
    state.cache = state.cache or StepCache()
    phase = phase_of(row)
    return CachedRow(state.cache, row.step_index - phase.first, len(phase.sigma_steps))
