"""From a request to what its steps need: prompt, references, noise levels, modulation, noise.

Of a model that is no flow map, text and references sit at timestep 0 in every step, and their modes' blocks see nothing
else: they run once, here, where that does not disturb the steps beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.accelerator import Accelerator
from models.flux3.components import Flux3Components
from pipelines.engine.request import Admission, Request
from pipelines.families.flow import rotations
from pipelines.families.flux2.latents import encoded, pack
from pipelines.families.flux3.conditioning import Conditioning
from pipelines.families.flux3.encode import PromptEmbedding, encode_prompt
from pipelines.families.flux3.layout import Mode
from pipelines.families.flux3.limits import Flux3Limits
from pipelines.families.flux3.packed import embed_target, embed_time, mode_forward, modulation_rows
from pipelines.families.flux3.prepare import references
from pipelines.families.flux3.sampling import initial_noise, picture_ids, sigmas_of, text_ids
from pipelines.families.prompts import PromptCache
from pipelines.ops.compute import Compute
from pipelines.protocol.conditions import Reference
from pipelines.protocol.params import GenerationParams

_MANY = 16
"""Rows from which on a product's kernel is that of many."""


class Admitter:
    """Admits requests to one checkpoint.

    Args: begins: whether it runs what sees nothing of a step; else every step does.
    """

    def __init__(
        self,
        components: Flux3Components,
        limits: Flux3Limits,
        accelerator: Accelerator,
        prompts: PromptCache[PromptEmbedding],
        compute: Compute,
        begins: bool,
    ) -> None:
        self._components = components
        self._limits = limits
        self._accelerator = accelerator
        self._prompts = prompts
        self._compute = compute
        self._begins = begins

    def prepare(self, request: Request) -> list[Tensor]:
        """The pictures to look at, on the host; may run on any thread."""
        condition = request.params.find(Reference)
        pictures = [request.pictures[index] for index in condition.pictures] if condition else []
        return references(pictures, self._components.size_multiple) if pictures else []

    def admit(self, params: GenerationParams, pictures: Sequence[Tensor]) -> Admission:
        """Args: pictures: from `prepare`. Raises: RequestError."""
        conditioning = self._condition(params, pictures)
        noise = tuple(self._noise(seed, conditioning) for seed in params.seeds)
        return Admission(conditioning, noise, tokens=conditioning.tokens)

    def _condition(self, params: GenerationParams, pictures: Sequence[Tensor]) -> Conditioning:
        components, upload = self._components, self._accelerator.to_device
        latents = [encoded(components.vae, upload(pixels)) for pixels in pictures]
        sides = self._limits.sides(params)
        ids = picture_ids(sides, [(each.shape[-2], each.shape[-1]) for each in latents])
        sigmas = sigmas_of(components.sigma_config, params.num_inference_steps)
        image, beside = self._modulation(sigmas)
        prompts = [params.prompt, params.negative_prompt] if self._limits.is_guided(params) else [params.prompt]
        embedded = [components.transformer.context_embedder(self._prompt(prompt)) for prompt in prompts]
        ropes = [rotations(components.transformer.pos_embed, upload(text_ids(len(text)))) for text in embedded]
        rope = rotations(components.transformer.pos_embed, upload(ids))
        drawn = sides[0] * sides[1]
        return Conditioning(
            texts=tuple(self._begun("txt", *each, beside) for each in zip(embedded, ropes, strict=True)),
            text_ropes=tuple(ropes),
            picture_rope=rope,
            guidance=params.guidance_scale,
            image=image,
            text=beside["txt"],
            reference=beside["image_cond"],
            sigmas=tuple(sigmas.tolist()),
            sigma_steps=upload((sigmas[1:] - sigmas[:-1]).to(components.dtype)),
            sides=sides,
            references=self._references(latents, rope[drawn:], beside),
        )

    def _references(self, latents: Sequence[Tensor], rope: Tensor, beside: dict[Mode, Tensor]) -> Tensor | None:
        if not latents:
            return None
        tokens = torch.cat([pack(each) for each in latents]).to(self._components.dtype)
        embedded = self._components.transformer.x_embedders["image_cond"](tokens)
        return self._begun("image_cond", embedded, rope, beside)

    def _begun(self, mode: Mode, tokens: Tensor, rope: Tensor, beside: dict[Mode, Tensor]) -> Tensor:
        """After the blocks of their mode, where those do not depend on the step."""
        if not self._begins:
            return tokens
        transformer, rotated = self._components.transformer, torch.view_as_real(rope)
        return mode_forward(transformer, mode, tokens, (len(tokens),), rotated, beside[mode], self._compute)

    def _prompt(self, prompt: str) -> Tensor:
        most = self._limits.max_sequence_length
        found = self._prompts.get(prompt, most)
        if found is None:
            found = encode_prompt(self._components, prompt, most, self._accelerator.to_device)
            self._prompts.put(prompt, most, found)
        return found.tokens

    def _modulation(self, sigmas: Tensor) -> tuple[Tensor, dict[Mode, Tensor]]:
        """Of the drawn tokens in every step, and of the others."""
        transformer, dtype = self._components.transformer, self._components.dtype
        train_steps = float(self._components.sigma_config.get("num_train_timesteps", 1000))
        # The stock pipeline goes by thousandths, too.
        times = self._accelerator.to_device((sigmas * train_steps / 1000).to(dtype))
        groups = 1 if self._accelerator.modulates_row_by_row else len(times)
        drawn = [embed_time(transformer, time, dtype) for time in times[:-1].split(groups)]
        still = [embed_time(transformer, torch.zeros_like(times[:1]), dtype)]
        if self._components.is_flow_map:
            targets = [embed_target(transformer, time, dtype) for time in times[1:].split(groups)]
            drawn = [time + target for time, target in zip(drawn, targets, strict=True)]
            still = [still[0] + target for target in targets]
        beside: tuple[Mode, ...] = ("txt", "image_cond")
        return self._rows("image", drawn), {mode: self._rows(mode, still) for mode in beside}

    def _rows(self, mode: Mode, embedded: Sequence[Tensor]) -> Tensor:
        """(steps, vectors). The stock module makes them once a token; a CPU rounds products of many rows otherwise."""
        transformer = self._components.transformer
        if not self._accelerator.modulates_row_by_row:
            return torch.cat([modulation_rows(transformer, mode, temb) for temb in embedded])
        return torch.cat([modulation_rows(transformer, mode, temb.expand(_MANY, -1))[:1] for temb in embedded])

    def _noise(self, seed: int, conditioning: Conditioning) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = initial_noise(generator, self._components.channels, conditioning.sides, self._components.dtype)
        return self._accelerator.to_device(noise)
