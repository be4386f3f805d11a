"""What a `--model` argument means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.arguments import UnknownModelError, resolve, resolve_all
from models.registry import REGISTRY, TINY


def folder(at: Path, class_name: str = "FluxPipeline", **config: Any) -> Path:
    """What of a checkpoint's folder says what it is."""
    (at / "transformer").mkdir(parents=True)
    (at / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    (at / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"} | config))
    return at


def test_a_folder_without_guidance_is_schnell_whatever_its_name(tmp_path: Path) -> None:
    spec = resolve(str(folder(tmp_path / "mine", guidance_embeds=False)))
    assert (spec.variant, spec.default_steps, spec.max_sequence_length) == ("schnell", 4, 256)
    assert resolve(str(folder(tmp_path / "unsaid"))).variant == "schnell"  # diffusers' default


def test_a_folder_with_guidance_is_not_schnell_whatever_its_name(tmp_path: Path) -> None:
    spec = resolve(str(folder(tmp_path / "schnell-to-dev", guidance_embeds=True)))
    assert (spec.variant, spec.default_steps, spec.max_sequence_length) == ("dev", 28, 512)
    assert resolve(str(folder(tmp_path / "my-krea", guidance_embeds=True))).variant == "krea"


def test_a_name_can_be_given(tmp_path: Path) -> None:
    path = folder(tmp_path / "b1946", guidance_embeds=True)
    spec = resolve(f"house-style={path}")
    assert (spec.name, spec.source, spec.variant) == ("house-style", str(path), "dev")
    assert resolve("house-style=owner/repo").source == "owner/repo"
    assert resolve("mine=random:tiny").source == TINY.source


def test_a_name_of_the_registry_brings_its_kind_and_defaults(tmp_path: Path) -> None:
    path = folder(tmp_path / "b1946", guidance_embeds=True)
    spec = resolve(f"FLUX.1-Krea-dev={path}")
    assert (spec.variant, spec.default_guidance, spec.source) == ("krea", 4.5, str(path))
    with pytest.raises(UnknownModelError, match=r"weights in .* are of the kind dev, but FLUX\.1-schnell is schnell"):
        resolve(f"FLUX.1-schnell={path}")


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = folder(tmp_path / "a=b", guidance_embeds=True)
    assert resolve(str(path)).source == str(path)
    with pytest.raises(UnknownModelError, match="the name may hold letters"):
        resolve(f"a/b={path}")


def test_a_folder_that_is_there_comes_before_a_repository_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "FLUX.1-dev", guidance_embeds=True)
    assert resolve("./FLUX.1-dev").source == str(path)
    assert resolve("FLUX.1-dev") is REGISTRY["FLUX.1-dev"]  # a bare name does not depend on where one stands
    nested = folder(tmp_path / "black-forest-labs" / "FLUX.1-dev", guidance_embeds=True)
    assert resolve("black-forest-labs/FLUX.1-dev").source == str(nested)


def test_two_models_never_have_one_name(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "a" / "flux"), folder(tmp_path / "b" / "flux")
    with pytest.raises(UnknownModelError, match=f"two models have the name flux: {one} and {two}"):
        resolve_all([str(one), str(two)])
    assert [spec.name for spec in resolve_all([str(one), f"other={two}"])] == ["flux", "other"]
    assert resolve_all(["flux-shapes", "flux-shapes"]) == (REGISTRY["flux-shapes"],)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("m/flux1-dev.safetensors", "there is no folder m"),
        ("./FLUX.1-dve", "did you mean FLUX.1-dev?"),
        ("store/FLUX.1-dve", "did you mean store/FLUX.1-dev?"),
        ("/no/such/place", "there is no folder /no"),
        ("flux-shape", "did you mean flux-shapes?"),
        ("flux1-dev-Q4_K_S.gguf", "there is no flux1-dev-Q4_K_S.gguf"),
        ("nonsense", "unknown model 'nonsense': give one of flux-shapes"),
    ],
)
def test_a_mistyped_argument_says_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "FLUX.1-dev")
    folder(tmp_path / "store" / "FLUX.1-dev")
    with pytest.raises(UnknownModelError) as caught:
        resolve(argument)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_of_a_repository_is_left_to_loading() -> None:
    assert resolve("someone/flux-schnell-tuned").variant == "schnell"
    assert resolve("someone/flux-schnell-tuned").max_sequence_length == 256
