"""The text encoder of FLUX.2 [klein]: Qwen3 up to the last layer that the transformer sees."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from models.errors import LoadError
from models.flux2.architectures import READ_LAYERS
from models.part import Part, open_part

_PREFIX = "model."
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class PromptEncoder(Qwen3Model):  # type: ignore[misc]
    """Qwen3 that ends with its last layer: no norm, and no words to predict."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.norm = nn.Identity()


def text_encoder_part(folder: Path) -> Part:
    """A folder of Qwen3 without what is never run: of 36 layers nine, and of 8 B the table of words to predict.

    Raises: LoadError.
    """
    return as_far_as_read(open_part(folder, Qwen3ForCausalLM))


def as_far_as_read(part: Part) -> Part:
    """Qwen3 without what is never run. Args: part: whole. Raises: LoadError."""
    depth = READ_LAYERS[-1]
    if part.config.num_hidden_layers < depth:
        raise LoadError(
            f"{part.label} has {part.config.num_hidden_layers} layers, but the transformer reads layer {depth}; "
            "take both from one checkpoint."
        )
    header = {name: entry for name, entry in part.header.items() if _is_run(name.removeprefix(part.prefix))}
    prefix = part.prefix + _PREFIX
    return replace(part, kind=PromptEncoder, config=_shortened(part.config), header=header, prefix=prefix)


def _is_run(name: str) -> bool:
    layer = _LAYER.match(name)
    return int(layer[1]) < READ_LAYERS[-1] if layer else name == "model.embed_tokens.weight"


def _shortened(config: Any) -> Any:
    shorter = copy.deepcopy(config)
    shorter.num_hidden_layers = READ_LAYERS[-1]
    shorter.layer_types = list(config.layer_types)[: READ_LAYERS[-1]]
    shorter.tie_word_embeddings = False
    return shorter
