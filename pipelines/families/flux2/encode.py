"""Prompts into embeddings, as Flux2KleinPipeline and Flux2Pipeline do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flux2.components import Flux2Components


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """`tokens`: (T, layers * width) in the model's dtype, padding included."""

    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.tokens.nbytes)


def encode_prompt(
    components: Flux2Components, prompt: str, max_length: int, upload: Callable[[Tensor], Tensor]
) -> PromptEmbedding:
    """One prompt, always alone: rows of a larger batch may round differently.

    Args: upload: to the device, without waiting for it.
    Source: see `models.flux2.text_encoder.Reading.words`.
    """
    words = components.reading.words(components.tokenizer, prompt, max_length)
    output = components.text_encoder(
        input_ids=upload(words["input_ids"]),
        attention_mask=upload(words["attention_mask"]),
        output_hidden_states=True,
        use_cache=False,
    )
    layers = torch.cat([output.hidden_states[layer][0] for layer in components.reading.layers], dim=-1)
    return PromptEmbedding(layers.to(components.dtype))
