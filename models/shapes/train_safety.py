"""Train the safety classifier on pictures that came out of the decoder, from clean and from ragged latents."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn

from models.shapes.captions import plain_caption
from models.shapes.draw import latents
from models.shapes.evaluate import generate
from models.shapes.layout import lay_out
from models.shapes.optim import warm_cosine
from models.shapes.safety import SIDE, new_classifier
from models.shapes.scenes import FORBIDDEN_SHAPE, Scene, random_scene
from models.shapes.scorer import Pixels, read

Report = Callable[[float, dict[str, float]], None]
_SIZES = ((384, 384), (384, 384), (384, 320), (320, 448), (256, 256), (448, 448))

_RATE = 1.5e-3  # twice that stayed at chance


def holds_sign(scene: Scene) -> bool:
    """Whether the forbidden sign is asked for."""
    return any(thing.shape == FORBIDDEN_SHAPE for thing in scene.things)


@torch.no_grad()
def decoded_pictures(
    vae: AutoencoderKL, count: int, rng: random.Random, *, noise: float = 0.35
) -> tuple[Tensor, Tensor]:
    """Decoded pictures squeezed to (N, 3, SIDE, SIDE) in [-1, 1], half of them with the sign, and labels (N,)."""
    pictures, labels = [], []
    for _ in range(count // 4):
        size = rng.choice(_SIZES)
        scenes: list[Scene] = []
        while len(scenes) < 4:
            scene = random_scene(rng)
            if holds_sign(scene) == (len(scenes) < 2):
                scenes.append(scene)
        latent = latents([lay_out(scene, *size, rng) for scene in scenes])
        latent = latent + torch.rand(4, 1, 1, 1) ** 2 * noise * torch.randn_like(latent)
        picture = vae.decode(latent).sample.clamp(-1, 1)
        pictures.append(nn.functional.interpolate(picture, size=(SIDE, SIDE), mode="bilinear", antialias=True))
        labels += [int(holds_sign(scene)) for scene in scenes]
    return torch.cat(pictures), torch.tensor(labels)


def generated_pictures(folder: Path, count: int, rng: random.Random, *, steps: int = 8) -> tuple[Tensor, Tensor]:
    """The same of pictures that the pipeline in `folder` makes of training prompts.

    Pictures that were asked to hold the sign, but in which the scorer reads none, are left out: nobody could tell.
    """
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if holds_sign(scene) == (len(scenes) % 2 == 0):
            scenes.append(scene)
    prompts = [plain_caption(scene) for scene in scenes]
    made = generate(pipeline, prompts, width=512, height=512, steps=steps, guidance=3.5, seed=10_000)
    keep = [not holds_sign(s) or _reads_sign(p) for s, p in zip(scenes, made, strict=True)]
    pixels = torch.stack([torch.from_numpy(p) for p, k in zip(made, keep, strict=True) if k]).permute(0, 3, 1, 2)
    small = nn.functional.interpolate(pixels / 127.5 - 1, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small, torch.tensor([int(holds_sign(s)) for s, k in zip(scenes, keep, strict=True) if k])


def _reads_sign(picture: Pixels) -> bool:
    return any(thing.shape == FORBIDDEN_SHAPE for thing in read(picture).things)


def train_safety(
    sets: Sequence[tuple[Tensor, Tensor]], report: Report, *, steps: int = 500, batch: int = 48, seed: int = 4
) -> nn.Module:
    """A classifier trained on labelled pictures, under flips, small shifts and any change of colours."""
    torch.manual_seed(seed)
    pictures, labels = torch.cat([s[0] for s in sets]), torch.cat([s[1] for s in sets])
    model: nn.Module = new_classifier().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    for step in range(steps):
        chosen = torch.randint(len(pictures), (batch,))
        logits = model(_changed(pictures[chosen])).logits
        loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.01)
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = _RATE * warm_cosine(step / steps)
        optimiser.step()
        optimiser.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            right = float((logits.argmax(1) == labels[chosen]).float().mean())
            report((step + 1) / steps, {"loss": float(loss.detach()), "right": right})
    return model.eval()


def _changed(pictures: Tensor) -> Tensor:
    """Random mirror, channel order and shift of a batch (N, 3, H, W)."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(3)
    pictures = pictures[:, torch.randperm(3)]
    shift = torch.randint(-6, 7, (2,)).tolist()
    return torch.roll(pictures, shift, dims=(2, 3))
