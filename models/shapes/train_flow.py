"""Train the transformer: endless drawn scenes, a curriculum from one centred thing to everything, resumable."""

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.shapes.attention import make_lean
from models.shapes.bars import Report
from models.shapes.captions import caption
from models.shapes.draw import latents
from models.shapes.fast import Fast, Size, Steps
from models.shapes.flow import MAX_GUIDANCE, TOKEN, Batch, flow_loss, guided_loss, new_transformer, pack
from models.shapes.layout import lay_out
from models.shapes.optim import Average, Optimisers, warm_cosine
from models.shapes.precision import half_precision
from models.shapes.scenes import EVERY_KIND, Kind, Scene, random_scene
from models.shapes.text import Encoders, random_length
from models.shapes.together import Together

# encoders, random numbers, the fraction of the run that is done, image tokens a step -> a fresh batch
Draw = Callable[[Encoders, random.Random, float, int], Batch]


@dataclass(frozen=True)
class Stage:
    """Until the fraction `until` of the run: which scenes, and which picture sizes, by weight."""

    until: float
    kinds: Mapping[Kind, float]
    sizes: Mapping[Size, float]


_SQUARE: Mapping[Size, float] = {(512, 512): 1.0}
_SMALL: Mapping[Size, float] = {
    (512, 512): 0.58,
    (448, 576): 0.07,
    (576, 448): 0.07,
    (640, 384): 0.05,
    (384, 640): 0.05,
    (1024, 768): 0.1,
    (576, 1024): 0.08,
}
_SERVED: Mapping[Size, float] = {
    (512, 512): 0.28,
    (448, 576): 0.04,
    (576, 448): 0.04,
    (1024, 768): 0.24,
    (768, 1024): 0.06,
    (576, 1024): 0.14,
    (1024, 576): 0.07,
    (768, 768): 0.06,
    (1024, 1024): 0.03,
    (256, 256): 0.03,
    (1536, 1536): 0.01,
}
# Which shape belongs to which word is learned last where several things differ.
_MIXED: Mapping[Kind, float] = {
    "centred": 0.13,
    "placed": 0.13,
    "same": 0.16,
    "pair": 0.2,
    "pair_placed": 0.16,
    "triple": 0.22,
}
CURRICULUM = (
    Stage(0.06, {"centred": 1.0}, _SQUARE),
    Stage(0.2, {"centred": 0.4, "placed": 0.3, "same": 0.15, "pair": 0.15}, _SQUARE),
    Stage(0.45, EVERY_KIND, _SMALL),
    Stage(1.01, _MIXED, _SERVED),
)


# Learned last, for its thin arms: a scene without it is drawn once more, so nearly twice as many hold one.
_HARDEST = "star"
GUIDED_FROM = 0.7  # of the run: before it the guidance input is always 1
NEVER = 2.0  # of a run is guidance taught: every scale, if there is one, does the same


def stage_at(done: float) -> Stage:
    """The stage of the curriculum at a fraction of the run."""
    return next(stage for stage in CURRICULUM if done < stage.until)


@torch.no_grad()
def make_batch(
    encoders: Encoders, rng: random.Random, kinds: Mapping[Kind, float], size: Size, count: int, *, empty: float = 0.1
) -> Batch:
    """Fresh training pictures of one size with captions, a share of them empty, on the encoders' device."""
    scenes = [_training_scene(rng, kinds) for _ in range(count)]
    layouts = [lay_out(scene, *size, rng) for scene in scenes]
    prompts = ["" if rng.random() < empty else caption(scene, rng) for scene in scenes]
    pooled, sequence = encoders.encode(prompts, random_length(rng))
    return Batch(pack(latents(layouts)).to(pooled.device), pooled, sequence, size[1], size[0])


def draw_scenes(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A batch of about so many image tokens, as the curriculum has it at the fraction `done` of the run."""
    stage = stage_at(done)
    size = rng.choices(list(stage.sizes), list(stage.sizes.values()))[0]
    return make_batch(encoders, rng, stage.kinds, size, rows_of(size, tokens))


def rows_of(size: Size, tokens: int, *, most: int = 160) -> int:
    """How many pictures of a size a step takes."""
    return min(most, max(2, tokens // (size[0] * size[1] // TOKEN**2)))


def _training_scene(rng: random.Random, kinds: Mapping[Kind, float]) -> Scene:
    scene = random_scene(rng, kinds)
    if any(thing.shape == _HARDEST for thing in scene.things):
        return scene
    return random_scene(rng, kinds)


class FlowTraining:
    """The state of one run: transformer, average, optimisers, progress; saved to and resumed from one file.

    A sibling brings the trained `model` that it starts from, what is drawn for it, and a lower `peak` of the learning
    rates; whoever starts from a model that knows guidance sees all scales from the first step.
    """

    def __init__(
        self,
        encoders: Encoders,
        *,
        device: torch.device,
        tokens: int = 64 * 64,
        seed: int = 2,
        model: nn.Module | None = None,
        draw: Draw = draw_scenes,
        guided_from: float = GUIDED_FROM,
        peak: float = 1.0,
        lr_muon: float = 0.02,
        memory: float = 0.999,
        decay: float = 0.0,
        fast: Fast | None = None,
        with_reference: bool = False,
    ) -> None:
        self.together = Together()
        torch.manual_seed(seed)
        self.encoders, self.device, self.tokens, self.draw = encoders, device, tokens, draw
        self.guided_from, self.peak, self.with_reference = guided_from, peak, with_reference
        # The guidance input means nothing before it is taught; where it never is, every scale must do the same.
        self.most_guidance = 1.0 if guided_from < 1 else MAX_GUIDANCE
        self.model = (new_transformer() if model is None else model).to(device).train()
        self.average = Average(self.model, memory)
        make_lean(self.model)
        make_lean(self.average.module)
        self.optimisers = Optimisers(
            self.model, lr_muon=lr_muon, lr_adam=2e-3, keep_adam=("embed", "proj_out."), decay=decay
        )
        self.rng = random.Random(seed)
        self.seconds, self.steps = 0.0, 0
        self._empty: dict[int, tuple[Tensor, Tensor]] = {}
        self._steps = Steps(self, fast) if fast else None
        self.history: list[dict[str, float]] = []
        self.scores: list[dict[str, float]] = []

    def run(
        self,
        seconds: float,
        report: Report,
        *,
        checkpoint: Path,
        save_every: float = 120,
        score: Callable[[nn.Module], dict[str, float]] | None = None,
        scores: int = 12,
    ) -> nn.Module:
        """Train until `seconds` in all (resumed time included) have gone by; returns the averaged transformer.

        Args: score: measures the averaged transformer; asked `scores` times, its answers are kept in `self.scores`.
        """
        if checkpoint.exists():
            self._load(checkpoint)
        last, saved = time.monotonic(), time.monotonic()
        losses: list[float | Tensor] = []
        try:
            while (done := self.together.from_first(self.seconds / seconds)) < 1:
                losses.append(self.step(done))
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                if self.steps % 50 == 0:
                    figures = {"step": self.steps, "seconds": self.seconds, "loss": float(sum(losses) / len(losses))}
                    self.history.append(figures)
                    report(done, figures)
                    losses = []
                if score and self.together.rank == 0 and done * scores >= len(self.scores) + 1:
                    self.scores.append({"step": self.steps} | score(self.average.module))
                if now - saved > save_every:
                    self._save(checkpoint)
                    saved = now
        finally:  # an interrupted run loses nothing
            self._save(checkpoint)
        return self.average.module

    def step(self, done: float) -> float | Tensor:
        """One update; returns its loss."""
        if self._steps:
            self.steps += 1
            return self._steps.step(done)
        loss = self.loss(done)
        loss.backward()
        self.together.average_gradients(self.model)
        self.optimisers.step(self.scale(done))
        self.average.update(self.model)
        self.steps += 1
        return float(loss.detach())

    def scale(self, done: float) -> float:
        """Of the learning rates at the fraction `done` of the run."""
        return self.peak * warm_cosine(done)

    def tokens_a_row(self, size: Size) -> int:
        """Image tokens of one picture, the reference included."""
        count = size[0] * size[1] // TOKEN**2
        return 2 * count if self.with_reference else count

    def loss(self, done: float) -> Tensor:
        """The loss of a fresh batch at the fraction `done` of the run."""
        batch = self.draw(self.encoders, self.rng, done, self.tokens // self.together.count)
        with half_precision(self.device):
            return self.loss_of(batch, self.phase(done))

    def phase(self, done: float) -> int:
        """Which of its losses the run uses at the fraction `done`: 0 before guidance is taught, then 1."""
        return int(done >= self.guided_from)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The loss of a batch in a phase, under autocast."""
        if phase == 0:
            return flow_loss(self.model, batch, most_guidance=self.most_guidance)
        return guided_loss(self.model, self.average.module, batch, self.nothing(batch, batch.sequence.shape[1]))

    def nothing(self, like: Batch, length: int) -> Batch:
        """The empty caption of a text length for every row of a batch."""
        if length not in self._empty:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                self._empty[length] = self.encoders.encode([""], length)
        pooled, sequence = self._empty[length]
        rows = len(like.latents)
        return replace(like, pooled=pooled.expand(rows, -1), sequence=sequence.expand(rows, -1, -1))

    def _save(self, path: Path) -> None:
        if self.together.rank:
            return
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "rng": self.rng.getstate(),
            "progress": (self.seconds, self.steps, self.history),
            "scores": self.scores,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.rng.setstate(copy.deepcopy(state["rng"]))
        self.seconds, self.steps, self.history = state["progress"]
        self.average.updates = self.steps
        self.scores = state["scores"]
        if self.together.rank:
            self.rng.seed(self.steps * self.together.count + self.together.rank)
        torch.manual_seed(self.steps * self.together.count + self.together.rank)
