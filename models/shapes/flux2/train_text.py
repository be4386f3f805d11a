"""Train the text encoder of flux2-shapes until a probe reads the scene from the layers that FLUX.2 reads."""

import random
from collections.abc import Callable

import torch
from torch import nn

from models.shapes.captions import caption
from models.shapes.flux2.text import SEQUENCE_WIDTH, KleinText, new_text
from models.shapes.optim import Optimisers, warm_cosine
from models.shapes.scenes import random_scene
from models.shapes.text import T5_WIDTH, Probe, answers, random_length

Report = Callable[[float, dict[str, float]], None]


def train_text(steps: int, report: Report, *, device: torch.device, batch: int = 192, seed: int = 1) -> KleinText:
    """An encoder whose layers name the scene; `report(fraction done, figures)` is called every few steps."""
    torch.manual_seed(seed)
    rng, text = random.Random(seed), new_text()
    bridge, probe = nn.Linear(SEQUENCE_WIDTH, T5_WIDTH), Probe()
    whole = nn.ModuleList([text.encoder, bridge, probe]).to(device).train()
    optimisers = Optimisers(whole, lr_muon=0.02, lr_adam=3e-3, keep_adam=("embed", "queries", "from_"))
    for step in range(steps):
        scenes = [random_scene(rng) for _ in range(batch)]
        _, sequence = text.encode([caption(scene, rng) for scene in scenes], min(random_length(rng), 64))
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        guesses = probe.read_sequence(bridge(sequence))
        losses = [nn.functional.cross_entropy(guess, truth[:, i]) for i, guess in enumerate(guesses)]
        torch.stack(losses).mean().backward()
        optimisers.step(warm_cosine(step / steps))
        if step % 25 == 0 or step == steps - 1:
            right = torch.stack([guess.argmax(1) == truth[:, i] for i, guess in enumerate(guesses)]).all(0)
            loss = float(torch.stack(losses).mean().detach())
            report((step + 1) / steps, {"loss": loss, "all right": float(right.float().mean())})
    text.encoder.eval().requires_grad_(False)
    return text
