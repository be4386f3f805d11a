"""The words' half of Qwen3-VL up to the last layer that FLUX.3's transformer sees."""

from __future__ import annotations

from torch import nn
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLTextConfig, Qwen3VLTextModel

from models.flux2.text_encoder import Reading
from models.flux3.architectures import READ_LAYERS


class PromptEncoder(Qwen3VLTextModel):  # type: ignore[misc]
    """Qwen3-VL without what sees pictures; it ends with its last layer: no norm, and no words to predict."""

    def __init__(self, config: Qwen3VLTextConfig) -> None:
        super().__init__(config)
        self.norm = nn.Identity()


QWEN3_VL = Reading(
    Qwen3VLForConditionalGeneration, PromptEncoder, ("model.language_model.", "language_model."), READ_LAYERS
)
