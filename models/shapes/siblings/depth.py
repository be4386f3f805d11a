"""A depth estimator for drawn scenes: things are near, the ground is far.

It has Depth Anything's layout with a third of a million parameters, so the same code opens either.
"""

import random

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from models.shapes.conditions import depth_layout
from models.shapes.draw import pictures
from models.shapes.layout import lay_out
from models.shapes.precision import half_precision
from models.shapes.scenes import random_scene
from models.shapes.text import Encoders
from models.shapes.train_flow import FlowTraining

SIDE, PATCH = 128, 8  # what the estimator is shown, and the pixels a side of its tokens
_SHOWN = ((128, 128), (256, 256), (256, 192), (192, 256))  # pictures before they are brought to SIDE
_PICTURES = 12  # a step


def new_estimator() -> DepthAnythingForDepthEstimation:
    """An untrained estimator."""
    backbone = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=3,
        image_size=SIDE,
        patch_size=PATCH,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    estimator = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=PATCH,
            reassemble_hidden_size=64,
            neck_hidden_sizes=[16, 24, 32, 32],
            fusion_hidden_size=24,
            head_hidden_size=16,
        )
    )
    torch.nn.init.constant_(estimator.head.conv3.bias, 0.5)  # a ReLU follows, which must not start dead
    return estimator


def new_depth_processor() -> DPTImageProcessor:
    """What turns any picture into the estimator's input."""
    half = [0.5, 0.5, 0.5]
    size = {"height": SIDE, "width": SIDE}
    return DPTImageProcessor(size=size, ensure_multiple_of=PATCH, image_mean=half, image_std=half)


class DepthTraining(FlowTraining):
    """The training of a depth estimator; the encoders are not used."""

    def __init__(self, encoders: Encoders, *, device: torch.device, memory: float) -> None:
        super().__init__(encoders, device=device, model=new_estimator(), memory=memory)

    def loss(self, done: float) -> Tensor:
        """The squared distance from the drawn depth, things and ground alike."""
        shown, depth = (part.to(self.device) for part in draw_depths(self.rng))
        with half_precision(self.device):
            told: Tensor = self.model(shown).predicted_depth
        error = (told.float() - depth).square()
        loss: Tensor = (error[depth > 0].mean() + error[depth == 0].mean()) / 2  # things cover little
        return loss


def draw_depths(rng: random.Random, count: int = _PICTURES) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, SIDE, SIDE) in [-1, 1], a little noisy, and their depth (count, SIDE, SIDE), near is 1."""
    size = rng.choice(_SHOWN)
    layouts = [lay_out(random_scene(rng), *size, rng) for _ in range(count)]
    depths = pictures([depth_layout(layout, rng) for layout in layouts])[:, :1]
    shown, depth = (
        interpolate(part, size=(SIDE, SIDE), mode="bilinear", antialias=True) for part in (pictures(layouts), depths)
    )
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    near = ((depth - low) / (high - low).clamp(min=1e-3) > 0.25).float()  # one height: nothing tells which is nearer
    return shown + rng.uniform(0, 0.05) * torch.randn_like(shown), near[:, 0]


@torch.no_grad()
def estimated(estimator: DepthAnythingForDepthEstimation, picture: Image.Image) -> Image.Image:
    """The depth picture of a picture, from black (far) to white."""
    pixels = new_depth_processor()(images=picture, return_tensors="pt").pixel_values
    depth = estimator(pixels).predicted_depth[:, None]
    depth = interpolate(depth, size=(picture.height, picture.width), mode="bicubic", align_corners=False)[0, 0]
    unit = (depth - depth.amin()) / (depth.amax() - depth.amin()).clamp(min=1e-6)
    return Image.fromarray((unit * 255).round().byte().numpy()).convert("RGB")
