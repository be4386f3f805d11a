"""From a request to what its steps need: prompt, references, noise levels, modulation, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from models.accelerator import Accelerator
from models.flux2.components import Flux2Components
from pipelines.adapters.binding import bound, everywhere
from pipelines.adapters.cache import AdapterCache
from pipelines.adapters.linears import Adaptable
from pipelines.engine.request import Admission, Request
from pipelines.families.flow import rotations
from pipelines.families.flux2.conditioning import Conditioning
from pipelines.families.flux2.encode import PromptEmbedding, encode_prompt
from pipelines.families.flux2.latents import encoded, pack
from pipelines.families.flux2.limits import Flux2Limits
from pipelines.families.flux2.packed import modulation_rows
from pipelines.families.flux2.prepare import reference
from pipelines.families.flux2.sampling import initial_noise, position_ids, sigmas_of
from pipelines.families.prompts import PromptCache
from pipelines.pictures.fit import fit, pad, to_tensor
from pipelines.protocol.conditions import Reference
from pipelines.protocol.params import GenerationParams


class Admitter:
    """Admits requests to one checkpoint."""

    def __init__(
        self,
        components: Flux2Components,
        limits: Flux2Limits,
        accelerator: Accelerator,
        prompts: PromptCache[PromptEmbedding],
        adapters: AdapterCache,
        adaptable: Adaptable[Flux2Transformer2DModel],
    ) -> None:
        self._components = components
        self._limits = limits
        self._accelerator = accelerator
        self._prompts = prompts
        self._adapters = adapters
        self._adaptable = adaptable

    def prepare(self, request: Request) -> list[Tensor]:
        """The pictures to look at, on the host; may run on any thread."""
        condition = request.params.find(Reference)
        pictures = [request.pictures[index] for index in (condition.pictures if condition else ())]
        if self._components.spec.keeps_reference_size:
            height, width = self._limits.drawn(request.params)
            wanted = request.params.width, request.params.height
            return [to_tensor(pad(fit(picture, wanted), (width, height))) for picture in pictures]
        return [reference(picture, self._components.size_multiple) for picture in pictures]

    def admit(self, params: GenerationParams, pictures: Sequence[Tensor]) -> Admission:
        """Args: pictures: from `prepare`. Raises: RequestError."""
        conditioning = self._condition(params, pictures)
        noise = tuple(self._noise(seed, conditioning) for seed in params.seeds)
        return Admission(conditioning, noise, tokens=conditioning.first_tokens)

    def _condition(self, params: GenerationParams, pictures: Sequence[Tensor]) -> Conditioning:
        components, upload = self._components, self._accelerator.to_device
        height, width = self._limits.sides(params)
        latents = [encoded(components.vae, upload(pixels)) for pixels in pictures]
        steps = params.num_inference_steps
        sigmas = sigmas_of(components.sigma_config, steps, height * width, components.levels)
        ids = position_ids(
            self._limits.text_tokens(params), (height, width), [(each.shape[-2], each.shape[-1]) for each in latents]
        )
        prompts = [params.prompt, params.negative_prompt] if self._limits.is_guided(params) else [params.prompt]
        rope = rotations(components.transformer.pos_embed, upload(ids))
        is_passed_once = bool(latents) and components.passes_references_once
        # Noise levels end at zero, where references that are passed once stand.
        times = sigmas if is_passed_once else sigmas[:-1]
        drawn = self._limits.text_tokens(params) + height * width
        uses = self._adapters.uses(components, params.adapters)
        with bound(everywhere(uses)):
            transformer = self._adaptable.for_pack(uses)
            texts = [self._text(transformer, prompt, self._limits.text_tokens(params)) for prompt in prompts]
            modulation = self._modulation(transformer, times, params.guidance_scale)
        return Conditioning(
            texts=tuple(texts),
            guidance=params.guidance_scale,
            modulation=modulation,
            sigmas=tuple(sigmas.tolist()),
            sigma_steps=upload((sigmas[1:] - sigmas[:-1]).to(components.dtype)),
            rope=rope[:drawn] if is_passed_once else rope,
            sides=(height, width),
            references=torch.cat([pack(each) for each in latents]).to(components.dtype) if latents else None,
            reference_rope=rope[drawn:] if is_passed_once else None,
            uses=uses,
        )

    def _text(self, transformer: Flux2Transformer2DModel, prompt: str, max_length: int) -> Tensor:
        found = self._prompts.get(prompt, max_length)
        if found is None:
            found = encode_prompt(self._components, prompt, max_length, self._accelerator.to_device)
            self._prompts.put(prompt, max_length, found)
        embedded: Tensor = transformer.context_embedder(found.tokens)
        return embedded

    def _modulation(self, transformer: Flux2Transformer2DModel, sigmas: Tensor, guidance: float) -> Tensor:
        """(sigmas, 17 D). On a CPU a product for each step, as in the stock pipeline: many rows round differently."""
        dtype = self._components.dtype
        train_steps = float(self._components.sigma_config.get("num_train_timesteps", 1000))
        # The stock pipeline rounds timesteps to the model's dtype, too.
        times = self._accelerator.to_device((sigmas * train_steps).to(dtype)) / 1000 * 1000
        # Embedded by FLUX.2 [dev] only; the modules pass over it where they have no place for it.
        scales = torch.full_like(times, guidance) * 1000
        groups = 1 if self._accelerator.modulates_row_by_row else len(times)
        embed = transformer.time_guidance_embed
        return torch.cat(
            [
                modulation_rows(transformer, embed(time, scale))
                for time, scale in zip(times.split(groups), scales.split(groups), strict=True)
            ]
        )

    def _noise(self, seed: int, conditioning: Conditioning) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = initial_noise(generator, self._components.channels, conditioning.sides, self._components.dtype)
        return self._accelerator.to_device(noise)
