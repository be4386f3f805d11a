"""The picture codec: a stock AutoencoderKL whose latents are prescribed by `draw.latents`.

The decoder is a super-resolution network from those latents; it trains with noise on them, so that it snaps the
ragged latents of a generator to clean shapes. The encoder is a regression to the same latents.
"""

import torch
from diffusers import AutoencoderKL
from torch import nn

from models.shapes.draw import LATENT_CHANNELS

CHANNELS = (8, 8, 16, 32, 64, 96)  # full size to 1/32; few near full size, where the pixels and so the time are


def new_vae() -> AutoencoderKL:
    """An untrained codec, initialised to pass its input through: averaging down, interpolating up."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # One group keeps the channels' levels relative to each other: with more, a flat colour is normalised away.
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )
    _pass_through(vae)
    return vae


@torch.no_grad()
def hold_output_to_centre(vae: AutoencoderKL) -> None:
    """Collapse the decoder's last convolution to its centre tap, the sum of its nine, and keep it so in training.

    Its zero padding at full size draws a line one pixel wide around every picture, which no later layer can mend.
    """
    weight = vae.decoder.conv_out.weight
    centre = torch.zeros_like(weight)
    centre[:, :, 1, 1] = 1
    weight.copy_(weight.sum((2, 3), keepdim=True) * centre)
    weight.register_hook(lambda gradient: gradient * centre.to(gradient))


@torch.no_grad()
def _pass_through(vae: AutoencoderKL) -> None:
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
        elif name.endswith("conv_shortcut"):
            _identity(module, torch.ones(1, 1))
        elif "downsamplers" in name:
            _identity(module, torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]))
        elif "upsamplers" in name:
            tap = torch.tensor([0.25, 0.5, 0.25])
            _identity(module, torch.outer(tap, tap))
        elif name.endswith("conv1") and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    mean_and_variance = vae.encoder.conv_out
    mean_and_variance.weight[LATENT_CHANNELS:].zero_()
    mean_and_variance.bias[LATENT_CHANNELS:].fill_(-14.0)


def _identity(convolution: nn.Conv2d, taps: torch.Tensor) -> None:
    """Weights that copy channel i to channel i through `taps`; surplus outputs copy from the start again, halved."""
    nn.init.zeros_(convolution.weight)
    for channel in range(convolution.out_channels):
        scale = 1.0 if channel < convolution.in_channels else 0.5
        convolution.weight[channel, channel % convolution.in_channels] = taps * scale
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
