"""FLUX.1 behind the engine's `Runner`: the only caller of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import Accelerator, Launched
from models.components import FluxComponents
from models.tuning import AUTO, Tuning
from pipelines.adapters.adapter import Uses
from pipelines.adapters.binding import bound, everywhere
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.adapters.linears import Adaptable, text_adapted
from pipelines.engine.request import Admission, Request, Row
from pipelines.engine.runner import Decoded
from pipelines.families.flux1.conditioning import Conditioning, conditioning_of, state_of
from pipelines.families.flux1.encode import PromptCache, PromptEmbedding, encode_prompt
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.packed import PackLayout, attention_shape, packed_forward
from pipelines.families.flux1.sampling import (
    crop_centred,
    euler_step,
    flow_match_sigmas,
    initial_latents,
    position_ids,
    to_pixels,
    unpack_latents,
)
from pipelines.families.flux1.step_cache import CachedRow, FirstBlockRule, HitRule, StepCache, cached_forward
from pipelines.ops.compute import Note, choose_compute
from pipelines.pictures.preview import LatentPreview
from pipelines.pictures.safety import safety_checker
from pipelines.protocol.params import GenerationParams

_MODULATION_CHUNK = 32
"""Steps whose modulation a request holds at a time: 67 MB in bfloat16 for FLUX.1-dev."""


@dataclass(frozen=True, slots=True)
class _Pack:
    """The rows of the last step and the part of the packed input that depends on them alone."""

    rows: tuple[Row, ...]
    layout: PackLayout
    text: Tensor


class FluxRunner:
    """FLUX.1 text-to-image over stock diffusers modules.

    Args: hit_rule: when rows with a step cache skip; benchmarks of random weights force a pattern. adapters: what
        requests may name.
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
    ) -> None:
        self.components = components
        self._adapters = adapters
        self._adaptable = Adaptable(components.transformer)
        self._accelerator = accelerator
        heads, head_dim = attention_shape(components.transformer)
        self._compute = choose_compute(
            tuning.resolved(accelerator.kind), heads, head_dim, components.dtype, accelerator, note
        )
        self._prompts = PromptCache(prompt_cache_bytes)
        self._safety = safety_checker(components.safety)
        self._hit_rule = hit_rule or FirstBlockRule()
        self._preview: LatentPreview | None = None
        self._pack: _Pack | None = None
        self.has_safety_checker = self._safety is not None
        self.limits = Flux1Limits.of(components)

    def admit(self, request: Request) -> Launched[Admission]:
        params = request.params

        @torch.inference_mode()
        def work() -> Admission:
            conditioning = self._condition(params)
            return Admission(conditioning, tuple(self._noise(seed, conditioning) for seed in params.seeds))

        return self._accelerator.launch("text", work, waits=False)

    @torch.inference_mode()
    def denoise(self, rows: Sequence[Row]) -> None:
        pack = self._packed(rows)
        conditionings = [conditioning_of(row) for row in pack.rows]
        modulation = torch.stack(
            [c.modulation.row(r.step_index) for c, r in zip(conditionings, pack.rows, strict=True)]
        )
        steps = torch.stack([c.sigma_steps[r.step_index] for c, r in zip(conditionings, pack.rows, strict=True)])
        latents = torch.cat([_latents(row) for row in pack.rows])
        noise_pred = self._predict(pack, latents, modulation)
        lengths = pack.layout.image_lengths
        for row, part, pred, step in zip(
            pack.rows, latents.split(lengths), noise_pred.split(lengths), steps.unbind(), strict=True
        ):
            row.latents = euler_step(part, pred, step)
            state = state_of(row)
            state.velocity = pred if row.request.params.preview_every else None
            if row.steps_left == 1:
                state.cache = None  # a finished picture may wait long for its decoding

    def _predict(self, pack: _Pack, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity of every row. Where no row has a step cache, nothing is decided and nothing copied."""
        transformer = self._adaptable.for_pack(pack.layout.uses)
        compute = self._compute.eager() if pack.layout.uses else self._compute
        if not any(row.request.caches_steps for row in pack.rows):
            return packed_forward(transformer, pack.layout, latents, pack.text, modulation, compute)
        cached = [_cached(row) for row in pack.rows]
        velocity, hits = cached_forward(
            transformer, pack.layout, latents, pack.text, modulation, compute, cached, self._hit_rule
        )
        blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        for row, is_hit in zip(pack.rows, hits, strict=True):
            row.computed = 1 / blocks if is_hit else 1.0
        return velocity

    def decode(self, row: Row) -> Launched[Decoded]:
        conditioning, latents, params = conditioning_of(row), _latents(row), row.request.params

        @torch.inference_mode()
        def work() -> Decoded:
            vae, to_host = self.components.vae, self._accelerator.to_host
            is_finite = torch.isfinite(latents).all()
            unpacked = unpack_latents(latents[None], conditioning.height, conditioning.width)
            scaled = unpacked / vae.config.scaling_factor + vae.config.shift_factor
            pixels = to_pixels(vae.decode(scaled, return_dict=False)[0][0])
            return Decoded(to_host(crop_centred(pixels, params.height, params.width).contiguous()), to_host(is_finite))

        return self._accelerator.launch("vae", work)

    def judge(self, pixels: NDArray[np.uint8]) -> Launched[float]:
        checker = self._safety
        assert checker is not None, "this model has no safety checker"
        return self._accelerator.launch("safety", lambda: checker.unsafe_probability(pixels), waits=False)

    @torch.inference_mode()
    def preview(self, row: Row) -> NDArray[np.uint8]:
        if self._preview is None:
            self._preview = LatentPreview(self.components.vae)
        conditioning, velocity = conditioning_of(row), state_of(row).velocity
        assert velocity is not None
        # Where the straight line from here along the predicted velocity ends: the picture expected at sigma 0.
        expected = _latents(row) - conditioning.sigmas[row.step_index] * velocity
        unpacked = unpack_latents(expected[None], conditioning.height, conditioning.width)[0]
        rendered: NDArray[np.uint8] = self._preview.render(unpacked).cpu().numpy()
        return rendered

    def _condition(self, params: GenerationParams) -> Conditioning:
        components = self.components
        uses = self._adapters.uses(components, params.adapters)
        transformer = self._adaptable.for_pack(uses)
        height, width = (side // components.vae_scale_factor for side in self.limits.drawn(params))
        max_length = self.limits.text_tokens(params)
        prompt = self._encoded(params.prompt, max_length, uses)
        tokens = (height // 2) * (width // 2)
        sigmas = flow_match_sigmas(components.sigma_config, params.num_inference_steps, tokens)
        with bound(everywhere(uses)):
            text = transformer.context_embedder(prompt.tokens)
        conditioning = Conditioning(
            text=text,
            modulation=ModulationTable(
                transformer,
                components.sigma_config,
                sigmas,
                params.guidance_scale,
                prompt.pooled,
                chunk=_MODULATION_CHUNK,
                row_by_row=self._accelerator.modulates_row_by_row,
                segments=everywhere(uses),
            ),
            sigma_steps=(sigmas[1:] - sigmas[:-1]).to(components.device, components.dtype),
            sigmas=tuple(sigmas.tolist()),
            rope=self._rope(text.shape[0], height // 2, width // 2),
            height=height,
            width=width,
            uses=uses,
        )
        return conditioning

    def _encoded(self, prompt: str, max_length: int, uses: Uses) -> PromptEmbedding:
        """Kept for the next request, unless adapters change what the text encoder says."""
        if any(adapter.text_encoder for adapter, _ in uses):
            with text_adapted(self.components.text_encoder, uses):
                return encode_prompt(self.components, prompt, max_length)
        found = self._prompts.get(prompt, max_length)
        if found is None:
            found = encode_prompt(self.components, prompt, max_length)
            self._prompts.put(prompt, max_length, found)
        return found

    def _rope(self, text_tokens: int, height: int, width: int) -> Tensor:
        """Complex rotations of one picture's tokens, (text_tokens + height * width, 1, head_dim / 2)."""
        ids = position_ids(text_tokens, height, width, self.components.dtype).to(self.components.device)
        cos, sin = self.components.transformer.pos_embed(ids)
        return torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]

    def _noise(self, seed: int, conditioning: Conditioning) -> Tensor:
        channels, dtype = self.components.latent_channels, self.components.dtype
        noise = initial_latents(seed, channels, conditioning.height, conditioning.width, dtype)
        return noise.to(self.components.device)

    def _packed(self, rows: Sequence[Row]) -> _Pack:
        """The pack of these rows, kept while they stay the same; equal adapters stand together, then equal sizes."""
        ordered = tuple(sorted(rows, key=_order_key))
        if self._pack is None or self._pack.rows != ordered:
            conditionings = [conditioning_of(row) for row in ordered]
            for conditioning in conditionings:
                self._accelerator.adopt(
                    conditioning.text, conditioning.rope, conditioning.sigma_steps, *conditioning.modulation.tensors
                )
                self._accelerator.adopt(*(tensor for adapter, _ in conditioning.uses for tensor in adapter.tensors))
            # Noise is made on another stream, too: its memory must not be reused before the steps have read it.
            self._accelerator.adopt(*(_latents(row) for row in ordered))
            layout = PackLayout(
                text_lengths=tuple(c.text_tokens for c in conditionings),
                image_lengths=tuple(c.image_tokens for c in conditionings),
                rope=torch.cat([c.rope for c in conditionings]),
                uses=tuple(c.uses for c in conditionings) if any(c.uses for c in conditionings) else (),
            )
            self._pack = _Pack(ordered, layout, torch.cat([c.text for c in conditionings]))
        return self._pack


def _order_key(row: Row) -> tuple[tuple[tuple[str, float], ...], int, int]:
    conditioning, adapters = conditioning_of(row), row.request.params.adapters
    named = tuple((adapter.file, adapter.scale) for adapter in adapters)
    return named, conditioning.image_tokens, conditioning.text_tokens


def _cached(row: Row) -> CachedRow | None:
    if not row.request.caches_steps:
        return None
    state = state_of(row)
    state.cache = state.cache or StepCache()
    return CachedRow(state.cache, row.step_index, row.request.num_steps)


def _latents(row: Row) -> Tensor:
    assert row.latents is not None, "the request was not admitted"
    return row.latents
