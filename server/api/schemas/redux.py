"""The inputs of fal's Redux endpoints: variations of one picture."""

from __future__ import annotations

from pipelines.protocol.conditions import Condition, Redux
from server.api.schemas.base import (
    Accelerated,
    Checked,
    FewSteps,
    Guidance,
    Guided,
    Input,
    Repeatable,
    Sized,
    Steered,
    Stepped,
    Tolerant,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl


class Varied(Input):
    """Drawn after a picture."""

    image_url: PictureUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Redux((needs.picture(self.image_url, "image_url"),), needs.checkpoint("redux")),)


class FluxProRedux(Varied, Repeatable, Steered, Sized, Stepped, Guided, Tolerant):
    """fal-ai/flux-pro/v1/redux and v1.1/redux."""


class FluxSchnellRedux(Varied, Repeatable, Sized, Stepped, Checked, Accelerated):
    """fal-ai/flux/schnell/redux: few steps, no guidance."""

    num_inference_steps: FewSteps = 4


class FluxDevRedux(Varied, Repeatable, Sized, Stepped, Guided, Checked, Accelerated):
    """fal-ai/flux/dev/redux."""


class FluxKreaRedux(FluxDevRedux):
    """fal-ai/flux/krea/redux."""

    guidance_scale: Guidance = 4.5
