"""From a request to what its steps need: prompts, size, schedule, noise, and the picture to start from."""

from __future__ import annotations

import torch
from torch import Tensor

from models.accelerator import Accelerator
from models.sdxl.components import SdxlComponents
from pipelines.engine.request import Admission
from pipelines.families.prompts import PromptCache
from pipelines.families.sdxl.conditioning import Conditioning, RowState
from pipelines.families.sdxl.encode import PromptEmbedding, encode_prompt
from pipelines.families.sdxl.latents import Encoded
from pipelines.families.sdxl.limits import SdxlLimits
from pipelines.families.sdxl.prepare import Prepared
from pipelines.families.sdxl.schedule import started
from pipelines.protocol.params import GenerationParams


class Admitter:
    """Admits requests to one checkpoint."""

    def __init__(
        self,
        components: SdxlComponents,
        limits: SdxlLimits,
        accelerator: Accelerator,
        prompts: PromptCache[PromptEmbedding],
    ) -> None:
        self._components = components
        self._limits = limits
        self._accelerator = accelerator
        self._prompts = prompts

    def admit(self, params: GenerationParams, pictures: Prepared) -> Admission:
        """Args: pictures: the request's, made ready on the host."""
        upload, kept = self._accelerator.to_device, params.num_steps
        scheduler = started(self._components, params.num_inference_steps, kept)
        texts = self._texts(params)
        size = self._limits.drawn(params)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=self._components.dtype).expand(len(texts), -1)
        conditioning = Conditioning(
            texts=torch.cat([each.tokens for each in texts]),
            pooled=torch.cat([each.pooled for each in texts]),
            time_ids=upload(time_ids.contiguous()),
            guidance=params.guidance_scale,
            timesteps=upload(scheduler.timesteps[-kept:]),
            mask=None if pictures.mask is None else upload(pictures.mask.to(self._components.dtype)),
            overlay=None if pictures.overlay is None else pictures.overlay.moved(upload),
        )
        source = None if pictures.start is None else Encoded(self._components.vae, upload(pictures.start))
        rows = [self._row(seed, params, source, conditioning.mask is not None) for seed in params.seeds]
        return Admission(conditioning, tuple(latents for latents, _ in rows), tuple(state for _, state in rows))

    def _texts(self, params: GenerationParams) -> list[PromptEmbedding]:
        """Of the prompt; with guidance, of the negative one before it."""
        wanted = self._embedded(params.prompt)
        if not self._limits.is_guided(params):
            return [wanted]
        is_zero = self._components.empty_is_zero and not params.negative_prompt
        return [wanted.zeros() if is_zero else self._embedded(params.negative_prompt), wanted]

    def _embedded(self, prompt: str) -> PromptEmbedding:
        found = self._prompts.get(prompt, 0)
        if found is None:
            found = encode_prompt(self._components, prompt, self._accelerator.to_device)
            self._prompts.put(prompt, 0, found)
        return found

    def _row(
        self, seed: int, params: GenerationParams, source: Encoded | None, is_masked: bool
    ) -> tuple[Tensor, RowState]:
        """One picture's first latents, and its state. A sample of the picture takes its numbers before the noise."""
        scheduler = started(self._components, params.num_inference_steps, params.num_steps)
        generator, dtype = torch.Generator().manual_seed(seed), self._components.dtype
        upload = self._accelerator.to_device
        clean = None if source is None else source.sample(upload(source.noise(generator)), dtype)
        if clean is not None and is_masked:
            clean = clean.contiguous()  # as the stock pipeline has it: the UNet rounds by the layout that it gets
        shape = (1, self._components.channels, *self._limits.sides(params))
        noise = upload(torch.randn(shape, generator=generator, dtype=dtype))
        is_whole = is_masked and params.num_steps == params.num_inference_steps
        if clean is None or is_whole:
            latents = noise * scheduler.init_noise_sigma
        else:
            begin = scheduler.timesteps[scheduler.begin_index].repeat(1)
            latents = scheduler.add_noise(clean, noise, begin)
        return latents, RowState(scheduler, clean, noise) if is_masked else RowState(scheduler)
