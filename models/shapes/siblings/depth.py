"""A depth estimator for drawn scenes: things are near, the ground is far.

It has Depth Anything's layout with a third of a million parameters, so the same code opens either.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from models.shapes.conditions import depth_layout
from models.shapes.draw import pictures
from models.shapes.layout import lay_out
from models.shapes.optim import Average, warm_cosine
from models.shapes.scenes import random_scene

SIDE, PATCH = 128, 8  # what the estimator is shown, and the pixels a side of its tokens
_SHOWN = ((128, 128), (256, 256), (256, 192), (192, 256))  # pictures before they are brought to SIDE
_PICTURES = 12  # a step
_LEARNING_RATE = 2e-3

Report = Callable[[float, dict[str, float]], None]


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


class DepthTraining:
    """One run, resumable from one file."""

    def __init__(self, *, device: torch.device, seed: int = 7) -> None:
        torch.manual_seed(seed)
        self.rng, self.device = random.Random(seed), device
        self.model = new_estimator().to(device).train()
        self.average = Average(self.model, 0.99)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
        self.seconds, self.steps = 0.0, 0

    def run(self, seconds: float, report: Report, *, checkpoint: Path) -> DepthAnythingForDepthEstimation:
        """Train until `seconds` in all have gone by; returns the averaged estimator."""
        if checkpoint.exists():
            self._load(checkpoint)
        last = saved = time.monotonic()
        while self.seconds < seconds:
            loss = self.step(self.seconds / seconds)
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.steps % 50 == 0:
                report(self.seconds / seconds, {"step": self.steps, "seconds": self.seconds, "loss": loss})
            if now - saved > 60:
                self._save(checkpoint)
                saved = now
        self._save(checkpoint)
        return self.average.module

    def step(self, done: float) -> float:
        """One update; returns its loss, the squared distance from the drawn depth, things and ground alike."""
        shown, depth = (part.to(self.device) for part in draw_depths(self.rng))
        error = (self.model(shown).predicted_depth - depth).square()
        loss = (error[depth > 0].mean() + error[depth == 0].mean()) / 2  # things cover little
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * warm_cosine(done)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(self.model)
        self.steps += 1
        return float(loss.detach())

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": (self.seconds, self.steps),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.seconds, self.steps = state["progress"]
        self.average.updates = self.steps
        self.rng.seed(self.steps)


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
