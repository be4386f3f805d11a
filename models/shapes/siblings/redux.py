"""Redux: a picture becomes tokens behind the prompt's, and the unchanged transformer draws a variation of it.

The tokens first learn to be what the text encoder makes of the scene's plain caption (the transformer gives text no
positions, so it can read them behind any prompt); then to steer the frozen transformer as a caption does, with an empty
prompt and its pooled vector.
"""

import random
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from models.shapes.attention import make_lean
from models.shapes.captions import caption, plain_caption
from models.shapes.draw import Drawing, latents, pictures
from models.shapes.fast import Fast, Size
from models.shapes.flow import Batch, pack, random_sigmas, velocity
from models.shapes.layout import lay_out
from models.shapes.scenes import random_scene
from models.shapes.text import SERVED_LENGTH, T5_WIDTH, Encoders, Probe, Words, answers, random_length
from models.shapes.train_flow import FlowTraining, rows_of

SIDE = 96  # pixels that the image encoder sees
PATCH = 12
TOKENS = (SIDE // PATCH) ** 2
WIDTH = 128
ALIGNING = 0.35  # of the run: until then the tokens only learn to be the caption's
GUIDANCE = 3.5  # what the transformer is steered at, as served
_SHOWN = ((96, 96), (96, 96), (96, 96), (128, 96), (96, 128), (160, 96), (96, 160))  # squeezed to a square
_DRAWN = ((256, 256), (384, 384), (512, 512), (512, 384), (384, 512))


class ReduxModel(nn.Module):
    """Image encoder and embedder, and the probe that teaches them to name a scene (not stored)."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=3 * WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=SIDE,
                patch_size=PATCH,
                vision_use_head=False,
                attn_implementation="eager",
            )
        )
        self.image_embedder = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=T5_WIDTH)
        self.probe = Probe()

    def forward(self, shown: Tensor) -> Tensor:
        """Tokens (B, TOKENS, T5_WIDTH) of pictures (B, 3, SIDE, SIDE) in [-1, 1]."""
        hidden = self.image_encoder(pixel_values=shown).last_hidden_state
        embeds: Tensor = self.image_embedder(hidden).image_embeds
        return embeds


def new_processor() -> SiglipImageProcessor:
    """What turns any picture into the encoder's input."""
    half = [0.5, 0.5, 0.5]
    return SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half)


@dataclass
class Sight(Batch):
    """Another drawing of each scene, by its caption, and what the image encoder is shown (B, 3, SIDE, SIDE).

    `aim` (B, TOKENS, T5_WIDTH) is the plain caption's own sequence, `truth` (B, answers) what a probe must name.
    """

    seen: Tensor | None = None
    aim: Tensor | None = None
    truth: Tensor | None = None
    length: int = SERVED_LENGTH  # of the empty prompt before the tokens


@dataclass(frozen=True)
class Sights:
    """Pictures of scenes as numbers, before they are drawn."""

    seen: Drawing
    whole: Drawing
    words: Words
    plain: Words
    truth: Tensor
    length: int
    noise: float

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Sight:
        """The batch, drawn on the encoders' device."""
        pooled, sequence = encoders.read(self.words)
        device = pooled.device
        seen = pictures(self.seen.to(device))
        if seen.shape[2:] != (SIDE, SIDE):
            seen = interpolate(seen, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        seen = seen + self.noise * torch.randn_like(seen)
        clean = pack(latents(self.whole.to(device)))
        size, truth = (self.whole.height, self.whole.width), self.truth.to(device)
        aim = encoders.read(self.plain)[1]
        return Sight(clean, pooled, sequence, *size, seen=seen, aim=aim, truth=truth, length=self.length)


def plan_sights(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Sights:
    """Fresh pictures of scenes, and other drawings of them of one size, to steer behind an empty prompt of `length`."""
    scenes = [random_scene(rng) for _ in range(count)]
    shown = rng.choice(_SHOWN)
    return Sights(
        Drawing.of([lay_out(scene, *shown, rng) for scene in scenes]),
        Drawing.of([lay_out(scene, *size, rng) for scene in scenes]),
        encoders.words([caption(scene, rng) for scene in scenes], SERVED_LENGTH),
        encoders.words([plain_caption(scene) for scene in scenes], TOKENS),
        torch.tensor([answers(scene) for scene in scenes]),
        length,
        rng.uniform(0, 0.06),
    )


def draw_sights(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch; many pictures while the tokens only learn to be the caption's, which is quick."""
    size = rng.choice(_DRAWN)
    count = 96 if done < ALIGNING else rows_of(size, tokens, most=96)
    return plan_sights(encoders, rng, size, random_length(rng), count).shown(encoders)


class ReduxTraining(FlowTraining):
    """The training of a ReduxModel; `transformer` stays as it is."""

    def __init__(
        self,
        encoders: Encoders,
        transformer: FluxTransformer2DModel,
        model: ReduxModel,
        *,
        device: torch.device,
        tokens: int,
        memory: float,
        peak: float = 1.0,
        aligning: float = ALIGNING,
        fast: Fast | None = None,
    ) -> None:
        super().__init__(
            encoders, device=device, tokens=tokens, model=model, draw=draw_sights, memory=memory, peak=peak, fast=fast
        )
        self.aligning = aligning
        self.transformer = transformer.to(device).eval().requires_grad_(False)
        make_lean(self.transformer)

    def phase(self, done: float) -> int:
        """0 while the tokens only learn to be the caption's, then 1."""
        return int(done >= self.aligning)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """The caption's tokens at first, then mostly steering."""
        model = self.model
        assert isinstance(model, ReduxModel)
        assert isinstance(batch, Sight)
        assert batch.seen is not None
        assert batch.truth is not None
        assert batch.aim is not None
        tokens = model(batch.seen)
        guesses = model.probe.read_sequence(tokens)
        truth = batch.truth
        naming = torch.stack([cross_entropy(guess.float(), truth[:, i]) for i, guess in enumerate(guesses)]).mean()
        if phase == 0:  # in units of the captions' own variance
            distance: Tensor = (tokens.float() - batch.aim).square().mean() / batch.aim.float().var()
            return distance + 0.1 * naming
        return self._steering(batch, tokens) + 0.05 * naming

    def _steering(self, asked: Sight, tokens: Tensor) -> Tensor:
        """How far the velocity behind the empty prompt is from that which the caption gives, on another drawing."""
        shown = self.nothing(asked, asked.length)
        shown.sequence = torch.cat([shown.sequence, tokens.to(shown.sequence.dtype)], dim=1)
        sigma = random_sigmas(len(tokens), asked.latents.shape[1], device=self.device)
        noisy = asked.latents + sigma.view(-1, 1, 1) * (torch.randn_like(asked.latents) - asked.latents)
        scale = torch.full_like(sigma, GUIDANCE)
        with torch.no_grad():
            target = velocity(self.transformer, noisy, sigma, asked, scale).float()
        return (velocity(self.transformer, noisy, sigma, shown, scale).float() - target).square().mean()
