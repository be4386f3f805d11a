"""Prompts into embeddings, as diffusers' Flux3TextEncoderStep does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flux3.architectures import READ_LAYERS
from models.flux3.components import Flux3Components

WINDOW = 80
"""Prompts are padded to a multiple of so many tokens; the transformer sees the padding, too."""
_LETTERS_A_TOKEN = 4
_TEMPLATE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """`tokens`: (T, layers * width) in the model's dtype, padding included."""

    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.tokens.nbytes)


def window(tokens: int, most: int) -> int:
    """Tokens that a prompt of so many is padded to."""
    return min(-(-tokens // WINDOW) * WINDOW, most)


def presumed_window(prompt: str, most: int) -> int:
    """The same before the prompt was cut into tokens."""
    return window(len(prompt) // _LETTERS_A_TOKEN + _TEMPLATE_TOKENS, most)


def encode_prompt(
    components: Flux3Components, prompt: str, most: int, upload: Callable[[Tensor], Tensor]
) -> PromptEmbedding:
    """One prompt, always alone: rows of a larger batch may round differently.

    Args: most: tokens; what is longer is cut. upload: to the device, without waiting for it.
    """
    words = components.tokenizer
    text = words.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    cut = {"truncation": True, "return_tensors": "pt"}
    length = window(words(text, max_length=most, **cut)["input_ids"].shape[1], most)
    padded = words(text, padding="max_length", padding_side="right", max_length=length, **cut)
    mask = padded["attention_mask"]
    # Padding stood at position 1 when the model was trained; transformers has changed that since.
    places = torch.arange(length)[None].masked_fill(mask == 0, 1)
    output = components.text_encoder(
        input_ids=upload(padded["input_ids"]),
        attention_mask=upload(mask),
        position_ids=upload(places),
        output_hidden_states=True,
        use_cache=False,
    )
    layers = torch.cat([output.hidden_states[layer][0] for layer in READ_LAYERS], dim=-1)
    return PromptEmbedding(layers.to(components.dtype))
