"""Train the text encoders: a minute or two on a CPU."""

import random

import torch
from torch import nn

from models.shapes.bars import Report
from models.shapes.captions import caption
from models.shapes.optim import Optimisers, warm_cosine
from models.shapes.scenes import random_scene
from models.shapes.text import Encoders, Probe, answers, new_encoders, random_length
from models.shapes.tokens import clip_tokenizer, corpus, t5_tokenizer


def train_text(steps: int, report: Report, *, device: torch.device, batch: int = 192, seed: int = 1) -> Encoders:
    """Encoders whose outputs name the scene; `report(fraction done, figures)` is called every few steps."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    texts = corpus()
    encoders = new_encoders(clip_tokenizer(texts), t5_tokenizer(texts))
    probe = Probe()
    whole = nn.ModuleList([encoders.clip, encoders.t5, probe]).to(device).train()
    optimisers = Optimisers(whole, lr_muon=0.02, lr_adam=3e-3, keep_adam=("embed", "shared", "queries", "from_"))
    for step in range(steps):
        scenes = [random_scene(rng) for _ in range(batch)]
        pooled, sequence = encoders.encode([caption(scene, rng) for scene in scenes], min(random_length(rng), 128))
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        pairs = probe(pooled, sequence)
        losses = [nn.functional.cross_entropy(guess, truth[:, i]) for i, pair in enumerate(pairs) for guess in pair]
        torch.stack(losses).mean().backward()
        optimisers.step(warm_cosine(step / steps))
        if step % 25 == 0 or step == steps - 1:
            right = [
                torch.stack([pair[side].argmax(1) == truth[:, i] for i, pair in enumerate(pairs)])
                .all(0)
                .float()
                .mean()
                .item()
                for side in (0, 1)
            ]
            loss = float(torch.stack(losses).mean())
            report((step + 1) / steps, {"loss": loss, "pooled all right": right[0], "sequence all right": right[1]})
    for module in (encoders.clip, encoders.t5):
        module.eval().requires_grad_(False)
    _settle(encoders)
    return encoders


@torch.no_grad()
def _settle(encoders: Encoders) -> None:
    """Scale both outputs to about unit variance by their last norms, so that the transformer starts well."""
    rng = random.Random(0)
    pooled, sequence = encoders.encode([caption(random_scene(rng), rng) for _ in range(256)], 32)
    final = (
        encoders.clip.final_layer_norm
        if hasattr(encoders.clip, "final_layer_norm")
        else encoders.clip.text_model.final_layer_norm
    )
    final.weight.div_(pooled.std())
    final.bias.div_(pooled.std())
    encoders.t5.encoder.final_layer_norm.weight.div_(sequence.std())
