"""From a request to what its steps need, whatever it brings: the only place where the families of FLUX.1 differ.

Random numbers are drawn in the order in which diffusers' pipelines draw them, from one CPU generator a row: the sample
of a control picture, of the picture to start from, the noise, the sample of a masked picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from models.accelerator import Accelerator
from models.components import FluxComponents
from pipelines.adapters.adapter import Uses
from pipelines.adapters.binding import bound, everywhere
from pipelines.adapters.cache import AdapterCache
from pipelines.adapters.linears import Adaptable, text_adapted
from pipelines.engine.request import Admission, Request
from pipelines.families.flow import add_noise, rotations
from pipelines.families.flux1.coarse import Enlargement, coarse_levels
from pipelines.families.flux1.conditioning import Conditioning, Phase, RowState
from pipelines.families.flux1.controlnets import NetUse, active_steps
from pipelines.families.flux1.encode import PromptEmbedding, encode_prompt
from pipelines.families.flux1.helpers import Helpers, WantedNet, with_pictures
from pipelines.families.flux1.inputs import Inputs, encode
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.packed import Network
from pipelines.families.flux1.prepare import PictureReader, Prepared
from pipelines.families.flux1.sampling import flow_match_sigmas, initial_noise, pack_latents, position_ids, unshifted
from pipelines.families.prompts import PromptCache
from pipelines.pictures.latents import Encoded
from pipelines.protocol.conditions import Coarse, Redux
from pipelines.protocol.params import GenerationParams

_MODULATION_CHUNK = 32
"""Steps whose modulation a request holds at a time: 67 MB in bfloat16 for FLUX.1-dev."""


class Admitter:
    """Admits requests to one checkpoint."""

    def __init__(
        self,
        components: FluxComponents,
        limits: Flux1Limits,
        accelerator: Accelerator,
        prompts: PromptCache[PromptEmbedding],
        adapters: AdapterCache,
        adaptable: Adaptable[FluxTransformer2DModel],
    ) -> None:
        self._components = components
        self._limits = limits
        self._accelerator = accelerator
        self._prompts = prompts
        self._adapters = adapters
        self._adaptable = adaptable

    def prepare(self, request: Request, helpers: Helpers) -> Prepared:
        """Make the request's pictures ready, on the host; may run on any thread."""
        drawn = self._limits.phases(request.params)[0]
        return PictureReader(self._components, request.params, request.pictures, drawn, helpers.prior).read()

    def admit(self, params: GenerationParams, helpers: Helpers, prepared: Prepared) -> Admission:
        """Raises: RequestError."""
        inputs = encode(self._components, prepared, params.num_steps, helpers.depth, self._accelerator.to_device)
        conditioning = self._condition(params, helpers, prepared.seen, inputs)
        rows = [self._start(seed, conditioning, inputs) for seed in params.seeds]
        tokens = conditioning.text_tokens + conditioning.phases[0].image_tokens + conditioning.reference_tokens
        return Admission(conditioning, tuple(row[0] for row in rows), tuple(row[1] for row in rows), tokens)

    def _condition(
        self, params: GenerationParams, helpers: Helpers, seen: Sequence[Tensor], inputs: Inputs
    ) -> Conditioning:
        uses = self._adapters.uses(self._components, params.adapters)
        prompt = with_pictures(self._prompt(params, uses), params.find(Redux), helpers.prior, seen)
        with bound(everywhere(uses)):
            text = self._adaptable.for_pack(uses).context_embedder(prompt.tokens)
        references = [pack_latents(latents)[0] for latents in inputs.references]
        sides = [(latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in inputs.references]
        phases = self._phases(params, text.shape[0], sides)
        return Conditioning(
            text=text,
            modulation=self._modulation(self._adaptable.for_pack(uses), params, phases, prompt, uses),
            phases=phases,
            enlargement=self._enlargement(phases) if params.find(Coarse) else None,
            references=torch.cat(references) if references else None,
            hold=inputs.hold,
            overlay=inputs.overlay,
            uses=uses,
            nets=tuple(self._net(net, params, prompt, phases) for net in helpers.nets),
        )

    def _net(
        self, wanted: WantedNet, params: GenerationParams, prompt: PromptEmbedding, phases: Sequence[Phase]
    ) -> NetUse:
        net, condition = wanted.net, wanted.condition
        text = net.context_embedder(prompt.tokens)
        height, width = phases[0].height // 2, phases[0].width // 2
        return NetUse(
            net=net,
            text=text,
            modulation=self._modulation(net, params, phases, prompt, ()),
            rope=self._rope(net, text.shape[0], height, width),
            scale=condition.scale,
            steps=active_steps(condition.start, condition.end, params.num_steps),
        )

    def _prompt(self, params: GenerationParams, uses: Uses) -> PromptEmbedding:
        """Kept for the next request, unless adapters change what the text encoder says."""
        max_length = self._limits.text_tokens(params)
        if any(adapter.text_encoder for adapter, _ in uses):
            with text_adapted(self._components.text_encoder, uses):
                return encode_prompt(self._components, params.prompt, max_length, self._accelerator.to_device)
        prompt = self._prompts.get(params.prompt, max_length)
        if prompt is None:
            prompt = encode_prompt(self._components, params.prompt, max_length, self._accelerator.to_device)
            self._prompts.put(params.prompt, max_length, prompt)
        return prompt

    def _phases(
        self,
        params: GenerationParams,
        text_tokens: int,
        references: Sequence[tuple[int, int]],
    ) -> tuple[Phase, ...]:
        upload, dtype = self._accelerator.to_device, self._components.dtype
        phases: list[Phase] = []
        first, network, multiple = 0, self._components.transformer, self._components.size_multiple
        for (height, width), kept in zip(self._limits.phases(params), self._levels(params), strict=True):
            sides = height // multiple, width // multiple
            phases.append(
                Phase(
                    first=first,
                    sigmas=tuple(kept.tolist()),
                    sigma_steps=upload((kept[1:] - kept[:-1]).to(dtype)),
                    levels=upload(kept.to(dtype)),
                    rope=self._rope(network, text_tokens, *sides, references),
                    height=2 * sides[0],
                    width=2 * sides[1],
                )
            )
            first += len(kept) - 1
        return tuple(phases)

    def _levels(self, params: GenerationParams) -> list[Tensor]:
        """The noise levels of each phase, float32 (steps + 1,)."""
        config, total = self._components.sigma_config, params.num_inference_steps
        cells = [height * width // self._limits.size_multiple**2 for height, width in self._limits.phases(params)]
        if params.find(Coarse) and len(cells) > 1:
            sigmas, last = flow_match_sigmas(config, total, cells[1]), params.phases[0]
            return [coarse_levels(sigmas[: last + 1], math.sqrt(cells[1] / cells[0])), sigmas[last:]]
        configs = [config, unshifted(config)]
        whole = [flow_match_sigmas(each, total, count) for each, count in zip(configs, cells, strict=False)]
        return [sigmas[total - steps :] for sigmas, steps in zip(whole, params.phases, strict=True)]

    def _enlargement(self, phases: Sequence[Phase]) -> Enlargement | None:
        """From coarse first steps to the others; None where the share left no step coarse."""
        if len(phases) == 1:
            return None
        small, large = phases
        sides = (small.height, small.width), (large.height, large.width)
        return Enlargement.between(*sides, large.sigmas[0], self._accelerator)

    def _modulation(
        self,
        network: Network,
        params: GenerationParams,
        phases: Sequence[Phase],
        prompt: PromptEmbedding,
        uses: Uses,
    ) -> ModulationTable:
        return ModulationTable(
            network,
            self._components.sigma_config,
            torch.tensor([sigma for phase in phases for sigma in phase.sigmas[:-1]], dtype=torch.float32),
            params.guidance_scale,
            prompt.pooled,
            chunk=_MODULATION_CHUNK,
            row_by_row=self._accelerator.modulates_row_by_row,
            upload=self._accelerator.to_device,
            segments=everywhere(uses),
        )

    def _rope(
        self, network: Network, text_tokens: int, height: int, width: int, references: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Complex rotations of one picture's tokens, (text_tokens + height * width + M, 1, head_dim / 2)."""
        ids = position_ids(text_tokens, height, width, self._components.dtype, references)
        return rotations(network.pos_embed, self._accelerator.to_device(ids))

    def _start(self, seed: int, conditioning: Conditioning, inputs: Inputs) -> tuple[Tensor, RowState]:
        """A row's first latents and what stands beside them. See this module's first lines for the order."""
        generator, phase = torch.Generator().manual_seed(seed), conditioning.phases[0]
        if conditioning.enlargement is not None:
            noise = self._noise(generator, conditioning.phases[-1])
            return conditioning.enlargement.shrink(noise), RowState(noise=noise)
        state = RowState(hints=tuple(self._sample(guide, generator) for guide in inputs.guides))
        control = None if inputs.control is None else self._sample(inputs.control, generator)
        clean = self._clean(inputs, phase, generator)
        noise = self._noise(generator, phase)
        latents = noise if clean is None else add_noise(clean, noise, phase.levels[0])
        if inputs.hold is not None:
            state.clean, state.noise = clean, noise
        if inputs.masked is not None and inputs.cells is not None:
            state.channels = torch.cat((self._sample(inputs.masked, generator), inputs.cells), dim=-1)
        elif control is not None:
            state.channels = control
        return latents, state

    def _clean(self, inputs: Inputs, phase: Phase, generator: torch.Generator) -> Tensor | None:
        """(N, C) latents of the picture to start from."""
        if inputs.masked is not None:
            self._noise(generator, phase)  # the pipeline encodes the picture, to drown it in noise altogether
        if inputs.start is None:
            return None
        # Kontext's pipelines take the likeliest latents of every picture, all others a sample.
        if inputs.references:
            return pack_latents(inputs.start.mode())[0]
        return self._sample(inputs.start, generator)

    def _sample(self, encoded: Encoded, generator: torch.Generator) -> Tensor:
        """(N, C) packed latents."""
        return pack_latents(encoded.sample(self._accelerator.to_device(encoded.noise(generator))))[0]

    def _noise(self, generator: torch.Generator, phase: Phase) -> Tensor:
        channels, dtype = self._components.latent_channels, self._components.dtype
        return self._accelerator.to_device(initial_noise(generator, channels, phase.height, phase.width, dtype))
