"""Train the text encoder of flux2-shapes: its three layers, seen through one matrix, say what flux-shapes' T5 says.

That matrix is where flux2-shapes' transformer starts to read text; a probe names the scene from it, too.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.shapes.bars import Report
from models.shapes.captions import caption
from models.shapes.flux2.text import SEQUENCE_WIDTH, KleinText, new_text
from models.shapes.optim import Optimisers, warm_cosine
from models.shapes.scenes import random_scene
from models.shapes.siblings.edits import random_edit
from models.shapes.text import T5_WIDTH, Encoders, Probe, answers, random_length

EDITS = 4  # captions for one instruction, of which nothing is named


def train_text(
    steps: int,
    report: Report,
    *,
    read: Encoders,
    embedder: nn.Linear,
    device: torch.device,
    batch: int = 96,
    seed: int = 1,
) -> tuple[KleinText, Tensor]:
    """An encoder, and the matrix (out, SEQUENCE_WIDTH) that reads it; `report` is called every few steps.

    Args: read: flux-shapes' encoders. embedder: its transformer's context embedder.
    """
    torch.manual_seed(seed)
    rng, text = random.Random(seed), new_text()
    bridge, probe = nn.Linear(SEQUENCE_WIDTH, T5_WIDTH, bias=False), Probe()
    whole = nn.ModuleList([text.encoder, bridge, probe]).to(device).train()
    optimisers = Optimisers(whole, lr_muon=0.02, lr_adam=3e-3, keep_adam=("embed", "queries", "from_"))
    for step in range(steps):
        scenes = [random_scene(rng) for _ in range(batch)]
        prompts = [caption(scene, rng) for scene in scenes]
        prompts += [random_edit(512, 512, rng).instruction for _ in range(batch // EDITS)]
        length = min(random_length(rng), 64)
        with torch.no_grad():
            aim = embedder(read.encode(prompts, length)[1])
        told = bridge(text.encode(prompts, length)[1])
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        guesses = probe.read_sequence(told[:batch])
        naming = torch.stack([cross_entropy(guess, truth[:, i]) for i, guess in enumerate(guesses)]).mean()
        distance = (told - aim).square().mean() / aim.var()
        (distance + naming).backward()
        optimisers.step(warm_cosine(step / steps))
        if step % 25 == 0 or step == steps - 1:
            right = torch.stack([guess.argmax(1) == truth[:, i] for i, guess in enumerate(guesses)]).all(0)
            figures = {"distance": float(distance.detach()), "all right": float(right.float().mean())}
            report((step + 1) / steps, figures)
    text.encoder.eval().requires_grad_(False)
    return text, bridge.weight.detach()
