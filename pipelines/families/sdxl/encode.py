"""Prompts into embeddings, as StableDiffusionXLPipeline.encode_prompt does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sdxl.components import SdxlComponents


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """`tokens`: (1, 77, D), both encoders' last but one layer side by side. `pooled`: (1, P) from the second."""

    tokens: Tensor
    pooled: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.tokens.nbytes + self.pooled.nbytes)

    def zeros(self) -> PromptEmbedding:
        """What stands for no negative prompt in checkpoints that were trained so."""
        return PromptEmbedding(torch.zeros_like(self.tokens), torch.zeros_like(self.pooled))


def encode_prompt(components: SdxlComponents, prompt: str, upload: Callable[[Tensor], Tensor]) -> PromptEmbedding:
    """One prompt through both encoders, always alone: rows of a larger batch may round differently.

    Args: upload: to the device, without waiting for it.
    """
    read = []
    for tokenizer, encoder in (
        (components.tokenizer, components.text_encoder),
        (components.tokenizer_2, components.text_encoder_2),
    ):
        length = tokenizer.model_max_length
        words = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        read.append(encoder(upload(words.input_ids), output_hidden_states=True))
    tokens = torch.cat([output.hidden_states[-2] for output in read], dim=-1)
    return PromptEmbedding(tokens.to(components.dtype), read[1][0].to(components.dtype))
