"""The inputs of fal's FLUX.1 text-to-image endpoints: one class a shape, fields and limits as fal publishes them."""

from __future__ import annotations

from server.api.schemas.base import (
    Accelerated,
    Checked,
    FewSteps,
    Guidance,
    Guided,
    LoraInput,
    Prompted,
    Repeatable,
    Sized,
    SlightlyAccelerated,
    Stepped,
    Tolerant,
)


class FluxPro(Repeatable, Prompted, Sized, Stepped, Guided, Tolerant):
    """fal-ai/flux-pro and /new."""


class FluxProPlus(Repeatable, Prompted, Sized, Tolerant):
    """fal-ai/flux-pro/v1.1: steps and guidance are the server's."""


class FluxDev(Repeatable, Prompted, Sized, Stepped, Guided, Checked, Accelerated):
    """fal-ai/flux/dev."""


class FluxSchnell(FluxDev):
    """fal-ai/flux/schnell: few steps."""

    num_inference_steps: FewSteps = 4


class FluxKrea(FluxDev):
    """fal-ai/flux/krea and /srpo: a stronger default guidance."""

    guidance_scale: Guidance = 4.5


class FluxLora(LoraInput, SlightlyAccelerated, Sized):
    """fal-ai/flux-lora and fal-ai/flux-krea-lora."""
