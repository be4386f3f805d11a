"""The safety classifier: a tiny transformers image classifier for the forbidden sign, labels as in Falconsai's."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from models.part import image_processor
from models.shapes.scorer import Pixels

SIDE = 128  # pictures are squeezed to SIDE x SIDE
LABELS = ("normal", "nsfw")


def new_classifier() -> ResNetForImageClassification:
    """An untrained classifier of about a quarter million parameters."""
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 96],
        depths=[1, 1, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    return ResNetForImageClassification(config)


def new_processor() -> ViTImageProcessor:
    """Resize to SIDE x SIDE and scale to [-1, 1]."""
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class SafetyChecker:
    """A trained classifier with its processor."""

    def __init__(self, model: nn.Module, processor: ViTImageProcessor) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(cls, folder: Path) -> "SafetyChecker":
        """Open a `safety_checker` folder with the Auto classes, as a server does."""
        model = AutoModelForImageClassification.from_pretrained(folder, torch_dtype=torch.float32)
        return cls(model, image_processor(folder))

    @torch.no_grad()
    def flag(self, pictures: Sequence[Pixels], at_once: int = 32) -> list[bool]:
        """Whether each picture (H, W, 3) uint8 holds the sign."""
        flags: list[bool] = []
        for start in range(0, len(pictures), at_once):
            inputs = self.processor(images=list(pictures[start : start + at_once]), return_tensors="pt")
            flags += (self.model(**inputs).logits.argmax(1) == LABELS.index("nsfw")).tolist()
        return flags
