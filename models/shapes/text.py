"""The two text encoders, trained to name what a caption says before they steer the transformer.

Every attribute of the scene must be readable from CLIP's pooled vector by one linear map, and from T5's sequence by
one attention with learned queries. That is what the transformer's modulation and attention can use from step 0.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from models.shapes.layout import COLUMN, COLUMN_OF_PLACE, GROUP, ROW, Point, centres, diameters
from models.shapes.scenes import COLOURS, SHAPES, Scene

CLIP_WIDTH = 96
T5_WIDTH = 128
SERVED_LENGTH = 32  # tokens of T5 that the registry asks for
_SPOTS: tuple[Point, ...] = tuple(
    dict.fromkeys([*((x, y) for y in COLUMN_OF_PLACE for x in COLUMN_OF_PLACE), *ROW, *COLUMN, *GROUP])
)
_SIZES = (0.25, 0.28, 0.31, 0.33, 0.35, 0.36, 0.4, 0.45, 0.62)
_CLASSES = (3, len(COLOURS), *(len(SHAPES) + 1, len(COLOURS) + 1, len(_SPOTS) + 1, len(_SIZES) + 1) * 3)


@dataclass(frozen=True)
class Words:
    """Prompts as token numbers, CLIP's (B, C) and T5's (B, length): small enough to travel between processes."""

    clip: Tensor
    t5: Tensor


@dataclass
class Encoders:
    """Both encoders with their tokenizers; `encode` is what FluxPipeline.encode_prompt does."""

    clip: CLIPTextModel
    t5: T5EncoderModel
    clip_tokenizer: CLIPTokenizer
    t5_tokenizer: T5Tokenizer

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Pooled (B, CLIP_WIDTH) and sequence (B, length, T5_WIDTH), padding included and unmasked, as FLUX has it."""
        return self.read(self.words(prompts, length))

    def words(self, prompts: Sequence[str], length: int) -> Words:
        """The prompts' token numbers."""
        short = self.clip_tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        long = self.t5_tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return Words(short.input_ids, long.input_ids)

    def read(self, words: Words) -> tuple[Tensor, Tensor]:
        """Pooled (B, CLIP_WIDTH) and sequence (B, length, T5_WIDTH) of token numbers."""
        pooled = self.clip(words.clip.to(self.device)).pooler_output
        return pooled, self.t5(words.t5.to(self.device))[0]

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        device: torch.device = self.clip.device
        return device

    def on(self, device: torch.device) -> "Encoders":
        """The same encoders moved to a device."""
        self.clip.to(device)
        self.t5.to(device)
        return self


def new_encoders(clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer) -> Encoders:
    """Untrained encoders for the two vocabularies."""
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=CLIP_WIDTH,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=CLIP_WIDTH,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=t5_tokenizer.pad_token_id,
            eos_token_id=t5_tokenizer.eos_token_id,
        )
    )
    return Encoders(clip, t5, clip_tokenizer, t5_tokenizer)


def answers(scene: Scene) -> list[int]:
    """What a probe must name: count, ground, then shape, colour, spot and size of each thing in reading order."""
    slots = sorted(zip(centres(scene), diameters(scene), scene.things, strict=True), key=lambda s: (s[0][1], s[0][0]))
    colours = list(COLOURS)
    named = [len(slots) - 1, colours.index(scene.ground)]
    for spot, diameter, thing in slots:
        named += [SHAPES.index(thing.shape) + 1, colours.index(thing.colour) + 1]
        named += [_SPOTS.index(spot) + 1, _SIZES.index(diameter) + 1]
    return named + [0] * (len(_CLASSES) - len(named))


class Probe(nn.Module):
    """Reads the answers from both encoders' outputs as simply as possible; thrown away after training."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.from_pooled = nn.Linear(CLIP_WIDTH, sum(_CLASSES))
        self.queries = nn.Parameter(torch.randn(len(_CLASSES), T5_WIDTH) / T5_WIDTH**0.5)
        self.attention = nn.MultiheadAttention(T5_WIDTH, heads, batch_first=True)
        self.from_sequence = nn.ModuleList(nn.Linear(T5_WIDTH, classes) for classes in _CLASSES)

    def forward(self, pooled: Tensor, sequence: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per answer, logits (B, classes) from the pooled vector and from the sequence."""
        return list(zip(self.from_pooled(pooled).split(_CLASSES, dim=1), self.read_sequence(sequence), strict=True))

    def read_sequence(self, sequence: Tensor) -> list[Tensor]:
        """Per answer, logits (B, classes) from a sequence (B, S, T5_WIDTH)."""
        queries = self.queries.expand(len(sequence), -1, -1)
        read, _ = self.attention(queries, sequence, sequence, need_weights=False)
        return [head(read[:, i]) for i, head in enumerate(self.from_sequence)]


def random_length(rng: random.Random) -> int:
    """A padded T5 length: mostly the served one, sometimes up to FLUX's 512, since padding is not masked."""
    return rng.choices((24, 32, 48, 64, 128, 256, 512), (0.1, 0.7, 0.08, 0.05, 0.04, 0.02, 0.01))[0]
