"""Redux: a picture becomes tokens behind the prompt's, and the unchanged transformer draws a variation of it.

The tokens first learn to be what the text encoder makes of the scene's plain caption (the transformer gives text no
positions, so it can read them behind any prompt); then to steer the frozen transformer as a caption does, with an empty
prompt and its pooled vector.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from models.shapes.attention import make_lean
from models.shapes.captions import caption, plain_caption
from models.shapes.draw import latents, pictures
from models.shapes.flow import Batch, pack, random_sigmas, velocity
from models.shapes.layout import lay_out
from models.shapes.scenes import Scene, random_scene
from models.shapes.text import T5_WIDTH, Encoders, Probe, answers, random_length
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


class ReduxTraining(FlowTraining):
    """The training of a ReduxModel; `transformer` stays as it is."""

    def __init__(
        self,
        encoders: Encoders,
        transformer: FluxTransformer2DModel,
        *,
        device: torch.device,
        tokens: int,
        memory: float,
    ) -> None:
        super().__init__(encoders, device=device, tokens=tokens, model=ReduxModel(), memory=memory)
        self.transformer = transformer.to(device).eval().requires_grad_(False)
        make_lean(self.transformer)

    @torch.no_grad()
    def _shown(self, scenes: list[Scene]) -> Tensor:
        width, height = self.rng.choice(_SHOWN)
        drawn = pictures([lay_out(scene, width, height, self.rng) for scene in scenes])
        if (width, height) != (SIDE, SIDE):
            drawn = interpolate(drawn, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return (drawn + self.rng.uniform(0, 0.06) * torch.randn_like(drawn)).to(self.device)

    def loss(self, done: float) -> Tensor:
        """The caption's tokens at first, then mostly steering."""
        size = self.rng.choice(_DRAWN)
        count = 96 if done < ALIGNING else rows_of(size, self.tokens, most=96)
        scenes = [random_scene(self.rng) for _ in range(count)]
        model = self.model
        assert isinstance(model, ReduxModel)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = model(self._shown(scenes))
            truth = torch.tensor([answers(scene) for scene in scenes], device=self.device)
            guesses = model.probe.read_sequence(tokens)
            naming = torch.stack([cross_entropy(guess.float(), truth[:, i]) for i, guess in enumerate(guesses)]).mean()
            if done < ALIGNING:
                return self._distance(scenes, tokens) + 0.1 * naming
            return self._steering(scenes, tokens, size) + 0.05 * naming

    def _distance(self, scenes: list[Scene], tokens: Tensor) -> Tensor:
        """How far the tokens are from the plain captions' own, in units of their variance."""
        _, captioned = self.encoders.encode([plain_caption(scene) for scene in scenes], TOKENS)
        return (tokens.float() - captioned).square().mean() / captioned.var()

    def _steering(self, scenes: list[Scene], tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """How far the velocity is from that which a caption of the scene gives, on another drawing of it."""
        asked, shown = self._batches(scenes, size)
        shown.sequence = torch.cat([shown.sequence, tokens], dim=1)
        sigma = random_sigmas(len(scenes), asked.latents.shape[1]).to(self.device)
        noisy = asked.latents + sigma.view(-1, 1, 1) * (torch.randn_like(asked.latents) - asked.latents)
        scale = torch.full_like(sigma, GUIDANCE)
        with torch.no_grad():
            target = velocity(self.transformer, noisy, sigma, asked, scale).float()
        return (velocity(self.transformer, noisy, sigma, shown, scale).float() - target).square().mean()

    @torch.no_grad()
    def _batches(self, scenes: list[Scene], size: tuple[int, int]) -> tuple[Batch, Batch]:
        """The same drawings with their captions, and with the empty prompt."""
        clean = pack(latents([lay_out(scene, *size, self.rng) for scene in scenes])).to(self.device)
        captions = self.encoders.encode([caption(scene, self.rng) for scene in scenes], 32)
        pooled, sequence = self.encoders.encode([""], random_length(self.rng))
        nothing = pooled.expand(len(scenes), -1), sequence.expand(len(scenes), -1, -1)
        return Batch(clean, *captions, size[1], size[0]), Batch(clean, *nothing, size[1], size[0])
