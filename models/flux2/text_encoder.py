"""The text encoders of FLUX.2, up to the last layer that the transformer sees: Qwen3 of [klein], Mistral of [dev]."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import nn
from transformers import (
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from models.errors import LoadError
from models.flux2.architectures import MISTRAL_LAYERS, READ_LAYERS
from models.part import Part, open_part

_LAYER = re.compile(r"layers\.(\d+)\.")


class PromptEncoder(Qwen3Model):  # type: ignore[misc]
    """Qwen3 that ends with its last layer: no norm, and no words to predict."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.norm = nn.Identity()


class MistralPromptEncoder(MistralModel):  # type: ignore[misc]
    """The same of Mistral; the pictures that its model could see are left out, too."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.norm = nn.Identity()


@dataclass(frozen=True, slots=True)
class Reading:
    """How one kind of text encoder is kept and asked.

    Args:
        stored: the class that checkpoints are saved as. kept: what is held of it.
        prefixes: of what is kept in a file's names, by the versions of transformers that wrote it.
        layers: those that the transformer sees side by side; nothing after the last is run.
    """

    stored: Any
    kept: Any
    prefixes: tuple[str, ...]
    layers: tuple[int, ...]

    def words(self, tokenizer: Any, prompt: str, max_length: int) -> Mapping[str, Any]:
        """`input_ids` and `attention_mask` of a prompt as the checkpoint was trained to be asked, padded and cut.

        Source: Flux2KleinPipeline._get_qwen3_prompt_embeds, Flux2Pipeline._get_mistral_3_small_prompt_embeds.
        """
        fitted = {"return_tensors": "pt", "padding": "max_length", "truncation": True, "max_length": max_length}
        if self.kept is PromptEncoder:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            words: Mapping[str, Any] = tokenizer(text, **fitted)
            return words
        told = (("system", SYSTEM_MESSAGE), ("user", prompt.replace("[IMG]", "")))
        messages = [[{"role": role, "content": [{"type": "text", "text": text}]} for role, text in told]]
        words = tokenizer.apply_chat_template(
            messages, add_generation_prompt=False, tokenize=True, return_dict=True, **fitted
        )
        return words


QWEN3 = Reading(Qwen3ForCausalLM, PromptEncoder, ("model.",), READ_LAYERS)
MISTRAL = Reading(
    Mistral3ForConditionalGeneration,
    MistralPromptEncoder,
    ("language_model.model.", "model.language_model."),
    MISTRAL_LAYERS,
)


def text_encoder_part(folder: Path, reading: Reading = QWEN3) -> Part:
    """A folder of the whole encoder without what is never run: the last layers, the words to predict, the pictures.

    Raises: LoadError.
    """
    return as_far_as_read(open_part(folder, reading.stored), reading)


def as_far_as_read(part: Part, reading: Reading = QWEN3) -> Part:
    """The encoder without what is never run. Args: part: whole. Raises: LoadError."""
    config, depth = getattr(part.config, "text_config", part.config), reading.layers[-1]
    if config.num_hidden_layers < depth:
        raise LoadError(
            f"{part.label} has {config.num_hidden_layers} layers, but the transformer reads layer {depth}; "
            "take both from one checkpoint."
        )
    prefixes = [part.prefix + prefix for prefix in reading.prefixes]
    prefix = next((each for each in prefixes if f"{each}embed_tokens.weight" in part.header), prefixes[0])
    header = {name: entry for name, entry in part.header.items() if _is_run(name, prefix, depth)}
    return replace(part, kind=reading.kept, config=_shortened(config, depth), header=header, prefix=prefix)


def _is_run(name: str, prefix: str, depth: int) -> bool:
    if not name.startswith(prefix):
        return False
    layer = _LAYER.match(name.removeprefix(prefix))
    return int(layer[1]) < depth if layer else name == f"{prefix}embed_tokens.weight"


def _shortened(config: Any, depth: int) -> Any:
    shorter = copy.deepcopy(config)
    shorter.num_hidden_layers = depth
    if getattr(config, "layer_types", None) is not None:
        shorter.layer_types = list(config.layer_types)[:depth]
    shorter.tie_word_embeddings = False
    return shorter
