"""Train the second text encoder of sdxl-shapes until a probe reads the scene from what SDXL reads."""

import random

import torch
from torch import nn

from models.shapes.bars import Report
from models.shapes.captions import caption
from models.shapes.optim import Optimisers, warm_cosine
from models.shapes.scenes import random_scene
from models.shapes.sdxl.text import SdxlText
from models.shapes.text import Probe, answers


def train_text(
    text: SdxlText, steps: int, report: Report, *, device: torch.device, batch: int = 96, seed: int = 1
) -> SdxlText:
    """The encoder whose pooled vector and last layer but one name the scene; `report` is called every few steps."""
    torch.manual_seed(seed)
    rng, probe = random.Random(seed), Probe()
    whole = nn.ModuleList([text.second, probe]).to(device).train()
    optimisers = Optimisers(whole, lr_muon=0.02, lr_adam=3e-3, keep_adam=("embed", "queries", "from_"))
    for step in range(steps):
        scenes = [random_scene(rng) for _ in range(batch)]
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        pairs = probe(*text.read(text.words([caption(scene, rng) for scene in scenes])))
        losses = [nn.functional.cross_entropy(guess, truth[:, i]) for i, pair in enumerate(pairs) for guess in pair]
        torch.stack(losses).mean().backward()
        optimisers.step(warm_cosine(step / steps))
        if step % 25 == 0 or step == steps - 1:
            right = [
                float(
                    torch.stack([pair[side].argmax(1) == truth[:, i] for i, pair in enumerate(pairs)])
                    .all(0)
                    .float()
                    .mean()
                )
                for side in (0, 1)
            ]
            loss = float(torch.stack(losses).mean().detach())
            report((step + 1) / steps, {"loss": loss, "pooled all right": right[0], "sequence all right": right[1]})
    text.second.eval().requires_grad_(False)
    return text
