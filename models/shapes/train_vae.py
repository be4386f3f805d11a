"""Train the codec: the decoder on noisy prescribed latents, the encoder by regression, both on freshly drawn scenes."""

import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.shapes.bars import Report
from models.shapes.conditions import sights
from models.shapes.draw import latents, pictures
from models.shapes.layout import lay_out
from models.shapes.optim import Average, Optimisers, warm_cosine
from models.shapes.precision import half_precision
from models.shapes.scenes import random_scene
from models.shapes.vae import hold_output_to_centre, new_vae

# (width, height, pictures a step): small and cheap first, then the sizes that are served.
_GROWTH = (
    (0.35, ((256, 256, 16), (320, 256, 12), (256, 320, 12))),
    (1.01, ((256, 256, 12), (512, 512, 4), (512, 384, 5), (384, 576, 4), (768, 512, 2), (448, 448, 5))),
)
_NOISE = 0.25  # the decoder sees latents with noise of up to this deviation


class CodecTraining:
    """One run over either half of the codec (`part` is "decoder" or "encoder"), resumable from one file."""

    def __init__(self, vae: AutoencoderKL, part: str, *, device: torch.device, seed: int = 3) -> None:
        torch.manual_seed(seed)
        self.part, self.device, self.rng = part, device, random.Random(seed)
        self.module: nn.Module = getattr(vae, part).to(device, memory_format=torch.channels_last).train()
        self.average: Average[nn.Module] = Average(self.module, 0.995)
        self.optimisers = Optimisers(self.module, lr_muon=0.01, lr_adam=2e-3, keep_adam=("conv_in", "conv_out", "norm"))
        self.seconds, self.steps = 0.0, 0
        self.history: list[dict[str, float]] = []

    def run(self, seconds: float, report: Report, *, checkpoint: Path) -> nn.Module:
        """Train until `seconds` in all have gone by; returns the averaged half."""
        if checkpoint.exists():
            self._load(checkpoint)
        last = saved = time.monotonic()
        losses: list[float] = []
        while self.seconds < seconds:
            losses.append(self.step(self.seconds / seconds))
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.steps % 25 == 0:
                figures = {"step": self.steps, "seconds": self.seconds, "loss": sum(losses) / len(losses)}
                self.history.append(figures)
                report(self.seconds / seconds, figures)
                losses = []
            if now - saved > 60:
                self._save(checkpoint)
                saved = now
        self._save(checkpoint)
        return self.average.module

    def step(self, done: float) -> float:
        """One update; returns its loss."""
        choices = next(choices for until, choices in _GROWTH if done < until)
        width, height, count = self.rng.choice(choices)
        layouts = [lay_out(random_scene(self.rng), width, height, self.rng) for _ in range(count)]
        if self.part == "encoder":
            picture, latent = sights(layouts, self.rng)
        else:
            picture, latent = pictures(layouts), latents(layouts)
        picture = picture.to(self.device, memory_format=torch.channels_last)
        latent = latent.to(self.device)
        with half_precision(self.device):
            loss = (
                self._decoder_loss(latent, picture) if self.part == "decoder" else self._encoder_loss(latent, picture)
            )
        loss.backward()
        self.optimisers.step(warm_cosine(done))
        self.average.update(self.module)
        self.steps += 1
        return float(loss.detach())

    def _decoder_loss(self, latent: Tensor, picture: Tensor) -> Tensor:
        level = torch.rand(len(latent), 1, 1, 1, device=self.device).square() * _NOISE
        error = self.module(latent + level * torch.randn_like(latent)).float() - picture
        # Zero padding shows as a line along the border, few pixels that a plain mean would neglect.
        weight = torch.full_like(error[:, :1], 3.0)
        weight[..., 4:-4, 4:-4] = 0.5
        loss: Tensor = (weight * (error.abs() + error.square())).mean()
        return loss

    def _encoder_loss(self, latent: Tensor, picture: Tensor) -> Tensor:
        mean = self.module(picture).float()[:, : latent.shape[1]]
        loss: Tensor = (mean - latent).abs().mean() + (mean - latent).square().mean()
        return loss

    def _save(self, path: Path) -> None:
        state = {
            "module": self.module.state_dict(),
            "average": self.average.module.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "rng": self.rng.getstate(),
            "progress": (self.seconds, self.steps, self.history),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.module.load_state_dict(state["module"])
        self.average.module.load_state_dict(state["average"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.rng.setstate(state["rng"])
        self.seconds, self.steps, self.history = state["progress"]


def train_vae(seconds: float, report: Report, *, device: torch.device, checkpoints: Path) -> AutoencoderKL:
    """A codec trained for so long: three quarters of it on the decoder."""
    torch.manual_seed(0)
    vae = new_vae()
    hold_output_to_centre(vae)
    for part, share in (("decoder", 0.75), ("encoder", 0.25)):
        half = CodecTraining(vae, part, device=device).run(
            seconds * share, report, checkpoint=checkpoints / f"{part}.pt"
        )
        getattr(vae, part).load_state_dict(half.state_dict())
    return vae.eval().requires_grad_(False)
