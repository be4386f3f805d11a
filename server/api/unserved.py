"""fal's FLUX endpoints that this server does not answer, each with its reason in half a sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unserved:
    """One of them, for lists. Its category, which fal publishes, is not kept here."""

    id: str
    reason: str
    category: None = None

    @property
    def summary(self) -> str:
        return f"{self.id} is not served: {self.reason}"


_FINETUNED = "its finetunes live at their maker; use a LoRA with fal-ai/flux-lora, or with fal-ai/flux-lora-fill"
_FLUX_2 = (
    "its weights or its LoRA are not public; with FLUX.2-dev a server answers fal-ai/flux-2, with FLUX.2-klein-4B "
    "fal-ai/flux-2/klein/4b"
)

_FLUX_2_ENDPOINTS = (
    "flux-2-pro", "flux-2-pro/edit", "flux-2-max", "flux-2-max/edit", "flux-2-flex",
    "flux-2-flex/edit", "flux-2-pro/outpaint", "flux-2/klein/realtime",
    *(f"flux-2-lora-gallery/{name}" for name in (
        "add-background", "apartment-staging", "ballpoint-pen-sketch", "digital-comic-art", "face-to-full-portrait",
        "hdr-style", "multiple-angles", "realism", "satellite-view-style", "sepia-vintage", "virtual-tryon")),
)  # fmt: skip

UNSERVED: dict[str, str] = {
    f"fal-ai/{name}": reason
    for name, reason in {
        "flux-pro/v1.1-ultra-finetuned": _FINETUNED,
        "flux-pro/v1/fill-finetuned": _FINETUNED,
        "flux-pro/v1/canny-finetuned": _FINETUNED,
        "flux-pro/v1/depth-finetuned": _FINETUNED,
        "flux-pro/v1/vto": "no FLUX.1 weights that dress a person are public",
        "flux-general/rf-inversion": "inverting a flow needs a sampler that this server does not have",
        "flux-realism": "its LoRA is not among the checkpoints here; use fal-ai/flux-lora with it",
        "flux-pulid": "it needs PuLID's face encoders, which this server cannot load",
        "flux-subject": "it needs OminiControl's adapters, which this server cannot load",
        "flux-vision-upscaler": "it needs a captioning model and an upscaler's ControlNet, which are not here",
        "lucidflux": "it needs LucidFlux' own networks, which this server cannot load",
        **dict.fromkeys(_FLUX_2_ENDPOINTS, _FLUX_2),
    }.items()
}
"""endpoint id -> why."""
