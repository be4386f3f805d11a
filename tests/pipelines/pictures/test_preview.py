"""Previews look like the picture that comes."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.families.flux1.runner import FluxRunner
from pipelines.pictures.preview import LatentPreview
from pipelines.protocol.frames import Preview
from tests.pipelines.driving import drain, make_engine, make_params, of, submit


class LinearVae:
    """A decoder that really is linear, so that the fit has a right answer."""

    matrix = torch.tensor([[0.2, -0.1, 0.0], [0.0, 0.2, 0.1], [-0.1, 0.0, 0.2], [0.1, 0.1, -0.1]])

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        rgb = torch.einsum("bchw,cr->brhw", latents, self.matrix) + 0.05
        return (torch.nn.functional.interpolate(rgb, scale_factor=4, mode="nearest"),)


def test_a_linear_decoder_is_recovered() -> None:
    vae = LinearVae()
    preview = LatentPreview(lambda x: vae.decode(x / 0.4 + 0.1, return_dict=False)[0], 4, torch.device("cpu"))
    latents = torch.randn((4, 6, 8), generator=torch.Generator().manual_seed(9)) * 0.5
    decoded = vae.decode(latents[None] / 0.4 + 0.1, return_dict=False)[0][0, :, ::4, ::4]
    expected = ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0)
    assert float((preview.render(latents).float() - expected).abs().max()) <= 1.5


def test_previews_have_one_pixel_a_latent_cell(runner: FluxRunner) -> None:
    engine = make_engine(runner)
    submit(engine, "a", make_params(num_inference_steps=4, preview_every=2, width=45, height=32))
    (preview,) = of(drain(engine), "a", Preview)
    assert isinstance(preview, Preview)
    assert (preview.width, preview.height, preview.step) == (12, 8, 2)
    assert np.frombuffer(preview.pixels, np.uint8).size == 12 * 8 * 3
