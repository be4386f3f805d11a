"""The two text encoders of sdxl-shapes: CLIP as flux-shapes has it, and a second one, read before its last layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.shapes.text import CLIP_WIDTH, T5_WIDTH, Encoders
from models.shapes.tokens import CLIP_LENGTH

POOLED_WIDTH = CLIP_WIDTH
OWN_WIDTH = T5_WIDTH
SEQUENCE_WIDTH = CLIP_WIDTH + OWN_WIDTH


@dataclass
class SdxlText:
    """Both encoders and their one tokenizer; `encode` is what StableDiffusionXLPipeline.encode_prompt does."""

    clip: CLIPTextModel
    second: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    def encode(self, prompts: Sequence[str], length: int = CLIP_LENGTH) -> tuple[Tensor, Tensor]:
        """Pooled (B, POOLED_WIDTH) and sequence (B, 77, SEQUENCE_WIDTH), padding included, whatever the `length`."""
        ids = self.words(prompts)
        first = self.clip(ids, output_hidden_states=True).hidden_states[-2]
        pooled, second = self.read(ids)
        return pooled, torch.cat([first, second], dim=-1)

    def words(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77) token numbers."""
        told = self.tokenizer(
            list(prompts), padding="max_length", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt"
        )
        ids: Tensor = told.input_ids.to(self.second.device)
        return ids

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the second encoder tells: pooled (B, POOLED_WIDTH), sequence (B, 77, OWN_WIDTH)."""
        output = self.second(ids, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]

    def on(self, device: torch.device) -> "SdxlText":
        """The same, moved to a device."""
        self.clip.to(device)
        self.second.to(device)
        return self


def new_text(trained: Encoders) -> SdxlText:
    """An untrained second encoder beside flux-shapes' CLIP."""
    tokenizer = trained.clip_tokenizer
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=OWN_WIDTH,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CLIP_LENGTH,
            projection_dim=POOLED_WIDTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return SdxlText(trained.clip, second, tokenizer)
