"""Prompts into embeddings, as FluxPipeline.encode_prompt does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.components import FluxComponents


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """`tokens`: (T, joint_dim) from T5. `pooled`: (1, pooled_dim) from CLIP. Both in the model's dtype."""

    tokens: Tensor
    pooled: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.tokens.nbytes + self.pooled.nbytes)


def encode_prompt(
    components: FluxComponents, prompt: str, max_length: int, upload: Callable[[Tensor], Tensor]
) -> PromptEmbedding:
    """One prompt through both encoders. Args: upload: to the device, without waiting for it.

    Always alone: rows of a larger batch may round differently, and a picture must not depend on its neighbours.
    Real encoders are saturated by one prompt of 512 tokens anyway.
    """
    clip_ids = _token_ids(components.tokenizer, prompt, components.tokenizer.model_max_length)
    t5_ids = _token_ids(components.tokenizer_2, prompt, max_length)
    pooled = components.text_encoder(upload(clip_ids), output_hidden_states=False).pooler_output
    tokens = components.text_encoder_2(upload(t5_ids), output_hidden_states=False)[0]
    return PromptEmbedding(tokens[0].to(components.dtype), pooled.to(components.dtype))


def _token_ids(tokenizer: Any, prompt: str, max_length: int) -> Tensor:
    """(1, max_length) token ids, padded and cut."""
    encoded = tokenizer([prompt], padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids
