"""Redux: a picture becomes tokens behind the prompt's, and the unchanged transformer draws a variation of it.

It learns in three parts. A writer, which knows the scene's plain caption, first learns tokens that steer the frozen
transformer behind an empty prompt and its pooled vector as that caption does: the states of its words, each at the
token of its role (the transformer gives text no positions), changed by what the pooled vector says. Then the image
encoder learns the writer's tokens from pictures, by regression: no transformer is needed for that. Last, it steers.
"""

import math
import random
from dataclasses import dataclass, replace

import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss, silu
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from models.shapes.attention import make_lean
from models.shapes.captions import plain_caption
from models.shapes.draw import Drawing, latents, pictures
from models.shapes.fast import Fast, Size
from models.shapes.flow import Batch, pack, velocity
from models.shapes.layout import centres, lay_out
from models.shapes.scenes import COLOURS, SHAPES, Scene, random_scene
from models.shapes.text import CLIP_WIDTH, SERVED_LENGTH, T5_WIDTH, Encoders, Probe, Words, answers
from models.shapes.train_flow import FlowTraining, rows_of

SIDE = 96  # pixels that the image encoder sees
PATCH = 16
TOKENS = (SIDE // PATCH) ** 2
WIDTH = 128
WRITING, ALIGNING = 0.25, 0.75  # of the run: until then the writer learns, the encoder learns from the writer
GUIDANCE = 3.5  # what the transformer is steered at, as served
ROLES = 9  # tokens of a thing: colour, shape, size, article or number, a space before it, four words of its place
EMPTY = 24  # tokens of the empty prompt that are computed; the last counts as often as the prompt is longer
_LENGTHS = {24: 0.05, 32: 0.45, 64: 0.1, 128: 0.1, 512: 0.3}  # of the empty prompt; diffusers' prior sends 512
_PARTS = {"a": ("▁", "a")}  # the only word that is two tokens
_THING_ROLES = {"small": 2, "large": 2, "a": 3, "an": 3, "two": 3, "three": 3, "▁": 4}
_GROUND_ROLES = {"background": 3, "a": 4, "an": 4, "▁": 5, "on": 6, "": 7}  # 2: its colour, "": the caption's end
_NOISIEST = 0.1  # share of the noise levels that is 1, where sampling starts
_SHOWN = ((96, 96), (96, 96), (96, 96), (128, 96), (96, 128), (160, 96), (96, 160))  # squeezed to a square
_DRAWN = ((512, 512), (512, 512), (512, 512), (384, 384), (512, 384), (384, 512))


def in_reading_order(scene: Scene) -> Scene:
    """The scene with its things from the top down and from left to right, as its picture shows them."""
    order = sorted(range(len(scene.things)), key=lambda i: centres(scene)[i][::-1])
    return replace(scene, things=tuple(scene.things[i] for i in order))


def word_tokens(scene: Scene) -> list[int]:
    """For each of TOKENS, which token of the scene's plain caption belongs there, or -1.

    Those of the first thing come first, then the second's and the third's, what joins them, and the ground's.
    """
    words = [part for word in plain_caption(scene).replace(",", " ,").split() for part in _PARTS.get(word, (word,))]
    ground = len(words) - words[::-1].index("on") - 1
    taken, thing, places = [-1] * TOKENS, 0, 0
    for i, word in enumerate(words[:ground]):
        if word in (",", "and", "above"):
            taken[3 * ROLES + thing] = i
            thing, places = thing + 1, 0
            continue
        if word in COLOURS:
            role = 0
        elif i and words[i - 1] in COLOURS:
            role = 1
        elif word in _THING_ROLES:
            role = _THING_ROLES[word]
        else:
            role, places = 5 + places, places + 1
        taken[thing * ROLES + role] = i
    for i, word in enumerate([*words[ground:], ""], ground):
        taken[3 * ROLES + _GROUND_ROLES.get(word, 2)] = i
    return taken


class Writer(nn.Module):
    """Tokens from a caption's: what the pooled vector would add, a frozen transformer must be told by them."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.read = nn.Linear(T5_WIDTH + CLIP_WIDTH, hidden)
        self.place_embed = nn.Parameter(torch.randn(TOKENS, hidden))
        self.mix = nn.Linear(hidden, hidden)
        self.write = nn.Linear(hidden, T5_WIDTH)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, words: Tensor, pooled: Tensor) -> Tensor:
        """(B, TOKENS, T5_WIDTH) of the words' states, each at its token, and the pooled vector (B, CLIP_WIDTH)."""
        told = torch.cat([words, pooled[:, None].expand(-1, TOKENS, -1)], dim=2)
        hidden = silu(self.read(told) + self.place_embed)
        written: Tensor = words + self.write(silu(self.mix(hidden)))
        return written


class ReduxModel(nn.Module):
    """Image encoder and embedder, and what teaches them: the writer, and heads that name a scene (not stored)."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=3 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=SIDE,
                patch_size=PATCH,
                vision_use_head=False,
                attn_implementation="eager",
            )
        )
        self.image_embedder = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=T5_WIDTH)
        self.writer = Writer()
        self.probe = Probe()
        self.covers = nn.Linear(WIDTH, len(SHAPES) + 1 + 3)

    def forward(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures (B, 3, SIDE, SIDE) in [-1, 1]: tokens (B, TOKENS, T5_WIDTH), and what covers each patch.

        That is read half-way: logits of no shape and each shape, and a colour (B, TOKENS, 13).
        """
        seen = self.image_encoder(pixel_values=shown, output_hidden_states=True)
        tokens: Tensor = self.image_embedder(seen.last_hidden_state).image_embeds
        return tokens, self.covers(seen.hidden_states[2])


def new_processor() -> SiglipImageProcessor:
    """What turns any picture into the encoder's input."""
    half = [0.5, 0.5, 0.5]
    return SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half)


@dataclass
class Sight(Batch):
    """Another drawing of each scene, by its plain caption, and what the image encoder is shown (B, 3, SIDE, SIDE).

    `words` (B, TOKENS) are the caption's tokens by role, `truth` (B, answers) what a probe must name, `covers` (B,
    TOKENS, 4) each patch's shape (0: none) and colour.
    """

    seen: Tensor | None = None
    words: Tensor | None = None
    truth: Tensor | None = None
    covers: Tensor | None = None
    length: int = SERVED_LENGTH  # of the empty prompt before the tokens

    def states(self) -> Tensor:
        """The caption's states at the tokens of their roles (B, TOKENS, T5_WIDTH); padding elsewhere."""
        assert self.words is not None
        index = self.words.remainder(self.sequence.shape[1])
        return self.sequence.gather(1, index[..., None].expand(-1, -1, self.sequence.shape[2]))


@dataclass(frozen=True)
class Sights:
    """Pictures of scenes as numbers, before they are drawn."""

    seen: Drawing
    whole: Drawing
    prompts: Words
    words: Tensor
    truth: Tensor
    length: int
    noise: float

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Sight:
        """The batch, drawn on the encoders' device."""
        pooled, sequence = encoders.read(self.prompts)
        device = pooled.device
        drawing = self.seen.to(device)
        seen = pictures(drawing)
        if seen.shape[2:] != (SIDE, SIDE):
            seen = interpolate(seen, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        seen = seen + self.noise * torch.randn_like(seen)
        size, words, truth = (self.whole.height, self.whole.width), self.words.to(device), self.truth.to(device)
        clean, covers = pack(latents(self.whole.to(device))), covers_of(drawing)
        read = clean, pooled, sequence, *size
        return Sight(*read, seen=seen, words=words, truth=truth, covers=covers, length=self.length)


def covers_of(drawing: Drawing) -> Tensor:
    """The shape at the middle of each patch (0: none), and its colour or the ground's: (B, TOKENS, 4)."""
    pose, side = drawing.poses, SIDE // PATCH
    middle = (torch.arange(side, device=pose.device) + 0.5) / side
    y, x = (middle[:, None].expand(side, side) * drawing.height, middle.expand(side, side) * drawing.width)
    away = torch.hypot(x.reshape(1, -1, 1) - pose[:, None, :, 0], y.reshape(1, -1, 1) - pose[:, None, :, 1])
    nearest, which = (away / pose[:, None, :, 2]).min(2)
    thing = pose.gather(1, which[..., None].expand(-1, -1, pose.shape[2]))
    shaped = torch.cat([thing[..., 8:] + 1, thing[..., 5:8]], dim=2)
    plain = torch.cat([torch.zeros_like(shaped[..., :1]), drawing.ground[:, None].expand(-1, side * side, -1)], dim=2)
    return torch.where(nearest[..., None] < 1, shaped, plain)


def plan_sights(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Sights:
    """Fresh pictures of scenes, and other drawings of them of one size, to steer behind an empty prompt of `length`."""
    scenes = [in_reading_order(random_scene(rng)) for _ in range(count)]
    shown = rng.choice(_SHOWN)
    return Sights(
        Drawing.of([lay_out(scene, *shown, rng) for scene in scenes]),
        Drawing.of([lay_out(scene, *size, rng) for scene in scenes]),
        encoders.words([plain_caption(scene) for scene in scenes], SERVED_LENGTH),
        torch.tensor([word_tokens(scene) for scene in scenes]),
        torch.tensor([answers(scene) for scene in scenes]),
        length,
        rng.uniform(0, 0.06),
    )


def draw_sights(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch; many pictures while the encoder learns without the transformer, which is quick."""
    size, length = rng.choice(_DRAWN), rng.choices(list(_LENGTHS), list(_LENGTHS.values()))[0]
    count = 64 if WRITING <= done < ALIGNING else rows_of(size, tokens, most=96)
    return plan_sights(encoders, rng, size, length, count).shown(encoders)


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
        learned: bool = False,
        fast: Fast | None = None,
    ) -> None:
        super().__init__(
            encoders, device=device, tokens=tokens, model=model, draw=draw_sights, memory=memory, peak=peak, fast=fast
        )
        self._until = (0.0, 0.0) if learned else (WRITING, ALIGNING)
        self.transformer = transformer.to(device).eval().requires_grad_(False)
        make_lean(self.transformer)

    def phase(self, done: float) -> int:
        """0 while the writer learns, 1 while the encoder learns from it, then 2."""
        return sum(done >= until for until in self._until)

    def loss_of(self, batch: Batch, phase: int) -> Tensor:
        """How well the writer steers, then how well the encoder writes and names, then mostly how well it steers."""
        model, average = self.model, self.average.module
        assert isinstance(model, ReduxModel)
        assert isinstance(average, ReduxModel)
        assert isinstance(batch, Sight)
        assert batch.seen is not None
        if phase == 0:
            return self._steering(batch, model.writer(batch.states(), batch.pooled))
        tokens, covers = model(batch.seen)
        naming = _naming(model.probe, tokens, batch)
        covering = 0.1 * _covering(covers.float(), batch)
        if phase == 2:
            return self._steering(batch, tokens) + 0.03 * naming + covering
        with torch.no_grad():
            aim = average.writer(batch.states(), batch.pooled).float()
        distance: Tensor = (tokens.float() - aim).square().mean() / (aim - aim.mean(0)).square().mean()
        return distance + 0.1 * naming + covering

    def _steering(self, asked: Sight, tokens: Tensor) -> Tensor:
        """How far the velocity behind the empty prompt is from that which the caption gives, on another drawing."""
        shown = self.nothing(asked, asked.length)
        shown.sequence = torch.cat([shown.sequence[:, :EMPTY], tokens.to(shown.sequence.dtype)], dim=1)
        often = torch.zeros(shown.sequence.shape[1], device=self.device)
        often[EMPTY - 1] = math.log(asked.length - EMPTY + 1)
        sigma = _sigmas(len(tokens), self.device)
        noisy = asked.latents + sigma.view(-1, 1, 1) * (torch.randn_like(asked.latents) - asked.latents)
        scale = torch.full_like(sigma, GUIDANCE)
        with torch.no_grad():
            target = velocity(self.transformer, noisy, sigma, asked, scale).float()
        return (velocity(self.transformer, noisy, sigma, shown, scale, often).float() - target).square().mean()


def _sigmas(count: int, device: torch.device) -> Tensor:
    """Noise levels, rather high ones: what is drawn is settled there, and below how well its edges run."""
    sigma = torch.sigmoid(torch.randn(count, device=device) * 1.3 + 0.7)
    return torch.where(torch.rand_like(sigma) < _NOISIEST, 1.0, sigma)


def _naming(probe: Probe, tokens: Tensor, batch: Sight) -> Tensor:
    assert batch.truth is not None
    guesses, truth = probe.read_sequence(tokens), batch.truth
    return torch.stack([cross_entropy(guess.float(), truth[:, i]) for i, guess in enumerate(guesses)]).mean()


def _covering(guess: Tensor, batch: Sight) -> Tensor:
    assert batch.covers is not None
    shape = cross_entropy(guess[..., :-3].flatten(0, 1), batch.covers[..., 0].long().flatten())
    colour: Tensor = 4 * mse_loss(guess[..., -3:], batch.covers[..., 1:])
    return shape + colour
