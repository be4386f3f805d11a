"""The safety stage with both layouts of checkers, made small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from models.components import SafetyModel
from pipelines.pictures.safety import ClassifierChecker, ConceptChecker, safety_checker
from tests.pipelines.conftest import amplify

SIDE = 32


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def make_classifier(labels: dict[int, str]) -> SafetyModel:
    """Falconsai's layout: a ViT with labels, and its image processor."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE,
        patch_size=16, id2label=labels, label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    amplify(model, 0.3)
    return SafetyModel(model, ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}))


def make_concepts() -> SafetyModel:
    """CompVis' layout: CLIP vision against 17 concepts."""
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": SIDE, "patch_size": 16, "projection_dim": 8,
    }  # fmt: skip
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    amplify(model, 0.3)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return SafetyModel(model, processor)


def test_a_classifier_gives_the_softmax_of_its_unsafe_label() -> None:
    safety = make_classifier({0: "normal", 1: "nsfw"})
    checker = safety_checker(safety)
    assert isinstance(checker, ClassifierChecker)
    for seed in range(3):
        inputs = safety.image_processor(images=Image.fromarray(picture(seed)), return_tensors="pt")
        with torch.inference_mode():
            expected = safety.model(**inputs).logits.softmax(-1)[0, 1]
        assert checker.unsafe_probability(picture(seed)) == pytest.approx(float(expected), abs=1e-6)


def test_the_unsafe_label_is_found_by_name() -> None:
    one, other = (make_classifier(labels) for labels in ({0: "normal", 1: "NSFW"}, {0: "nsfw", 1: "normal"}))
    total = ClassifierChecker(one).unsafe_probability(picture(1)) + ClassifierChecker(other).unsafe_probability(
        picture(1)
    )
    assert total == pytest.approx(1.0, abs=1e-5)


def test_a_classifier_without_such_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match="cat"):
        safety_checker(make_classifier({0: "cat", 1: "dog"}))


def test_half_is_the_line_of_the_concept_checker_itself() -> None:
    safety = make_concepts()
    checker = safety_checker(safety)
    assert isinstance(checker, ConceptChecker)
    model = safety.model
    decisions = set()
    for threshold in np.linspace(-0.8, 0.8, 9):
        model.concept_embeds_weights.fill_(float(threshold))
        for seed in range(4):
            inputs = safety.image_processor(images=Image.fromarray(picture(seed)), return_tensors="pt").pixel_values
            _, (flagged,) = model(clip_input=inputs, images=[picture(seed)])
            assert (checker.unsafe_probability(picture(seed)) >= 0.5) is bool(flagged)
            decisions.add(bool(flagged))
    assert decisions == {True, False}


def test_no_checker_is_none() -> None:
    assert safety_checker(None) is None
