"""How likely a finished picture is unsafe, by whichever safety checker the checkpoint contains."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from numpy.typing import NDArray
from PIL import Image

from models.components import SafetyModel

UNSAFE_LABELS = ("nsfw", "unsafe", "forbidden")
"""Classifier labels that mean unsafe (Falconsai/nsfw_image_detection calls it nsfw)."""

_MARGIN_SCALE = 0.02
_MARGIN_ROUNDING = 0.0005


class SafetyChecker(Protocol):
    """Judges one picture."""

    def unsafe_probability(self, pixels: NDArray[np.uint8]) -> float:
        """In [0, 1], for (height, width, 3) uint8 RGB. 0.5 is the checker's own threshold."""


class ClassifierChecker:
    """An image classifier with a label for unsafe: the probability is its softmax."""

    def __init__(self, safety: SafetyModel) -> None:
        self._safety = safety
        names = {index: str(name).lower() for index, name in safety.model.config.id2label.items()}
        unsafe = [index for index, name in names.items() if name in UNSAFE_LABELS]
        if len(unsafe) != 1:
            raise ValueError(f"the safety checker has no label among {UNSAFE_LABELS}, only {sorted(names.values())}")
        self._index = unsafe[0]

    @torch.inference_mode()
    def unsafe_probability(self, pixels: NDArray[np.uint8]) -> float:
        logits = self._safety.model(pixel_values=_prepared(self._safety, pixels)).logits[0]
        return float(logits.float().softmax(-1)[self._index])


class ConceptChecker:
    """CompVis' StableDiffusionSafetyChecker: cosine margins over 17 concepts, mapped to a probability.

    The checker flags a picture if any margin, rounded to three digits, is above zero. The logistic function of
    margin / 0.02 puts that point at 0.5, so a threshold of 0.5 is CompVis' own decision, a lower one is stricter.
    """

    def __init__(self, safety: SafetyModel) -> None:
        self._safety = safety

    @torch.inference_mode()
    def unsafe_probability(self, pixels: NDArray[np.uint8]) -> float:
        model = self._safety.model
        embedding = model.visual_projection(model.vision_model(_prepared(self._safety, pixels))[1])
        special = cosine_distance(embedding, model.special_care_embeds) - model.special_care_embeds_weights
        adjustment = 0.01 if bool((special.float().round(decimals=3) > 0).any()) else 0.0
        margins = cosine_distance(embedding, model.concept_embeds) - model.concept_embeds_weights + adjustment
        margin = float(margins.float().round(decimals=3).max())
        return 1 / (1 + math.exp(-(margin - _MARGIN_ROUNDING) / _MARGIN_SCALE))


def safety_checker(safety: SafetyModel | None) -> SafetyChecker | None:
    """The checker for a checkpoint's safety model; None if it has none. Raises: ValueError if it has no label."""
    if safety is None:
        return None
    is_concepts = isinstance(safety.model, StableDiffusionSafetyChecker)
    return ConceptChecker(safety) if is_concepts else ClassifierChecker(safety)


def _prepared(safety: SafetyModel, pixels: NDArray[np.uint8]) -> torch.Tensor:
    inputs: torch.Tensor = safety.image_processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    parameter = next(safety.model.parameters())
    return inputs.to(parameter.device, parameter.dtype)
