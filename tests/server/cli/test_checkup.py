"""What the doctor says of models, and of the devices that shall hold them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models import host_memory
from models.memory import Preset
from models.registry import REGISTRY
from server.cli import checkup
from server.settings import Settings

SHAPES = Path(__file__).parents[3] / "models" / "shapes" / "flux-shapes"
DEV = REGISTRY["FLUX.1-dev"]


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests has."""
    monkeypatch.setattr(host_memory, "available", lambda: 64_000_000_000)


def card(gib: int, capability: str = "8.9") -> dict[str, Any]:
    return {"name": "A Card", "memory": gib << 30, "capability": capability}


def settings(**changes: Any) -> Settings:
    return Settings(**({"models": ("FLUX.1-dev",)} | changes))


@pytest.mark.parametrize(
    ("offload", "gib", "verdict", "words"),
    [
        ("none", 16, "warning", "--quantization fp8 --offload text+modulation"),
        ("none", 24, "warning", "--offload text+modulation"),
        ("none", 32, "warning", "--offload text+modulation"),
        ("text", 32, "warning", "pictures of 2368 x 1792 may fail"),
        ("none", 141, "ok", ""),
        (
            "none",
            12,
            "warning",
            "--offload text+blocks (6.4 to 16.5 GB, each step passes 17.2 GB, 0.72 s over PCIe 4.0;",
        ),
        ("none", 12, "warning", "faster: float8 with --offload text+modulation, see docs/operations.md"),
        ("none", 2, "warning", "no setting"),
    ],
)
def test_which_flags_fit_a_gpu(offload: str, gib: int, verdict: str, words: str) -> None:
    (fit,) = checkup.fits(settings(offload=offload), [DEV], [card(gib), card(200)])
    assert (fit.verdict, fit.subject) == (verdict, "fit")
    assert words in fit.advice
    assert "FLUX.1-dev" in fit.detail
    assert "A Card" in fit.detail


def test_recordings_are_counted_unless_they_are_turned_off() -> None:
    with_them, without = (checkup.fits(settings(tuning=tuning), [DEV], [card(141)])[0] for tuning in ("", "replay=off"))
    assert "40.6 of 151.4 GB" in with_them.detail
    assert "38.7 of 151.4 GB" in without.detail


def test_what_waits_on_the_host_must_fit_there(monkeypatch: pytest.MonkeyPatch) -> None:
    (fit,) = checkup.fits(settings(offload="text"), [DEV], [card(80)])
    assert (fit.verdict, "9.8 GB wait on the host, 64.0 GB are free" in fit.detail) == ("ok", True)
    monkeypatch.setattr(host_memory, "available", lambda: 8_000_000_000)
    (fit,) = checkup.fits(settings(offload="text"), [DEV], [card(80)])
    assert (fit.verdict, fit.advice.startswith("no flags (40.6 to")) == ("warning", True)
    (fit,) = checkup.fits(settings(), [DEV], [card(24)])
    assert fit.advice == "no setting makes it fit on this machine"


def test_models_are_counted_together_and_what_they_share_once() -> None:
    both = [DEV, REGISTRY["FLUX.1-schnell"]]
    one, two = (checkup._needs(settings(), specs, Preset("none", "none"))[0].device for specs in ([DEV], both))
    assert 23.5e9 < two - one < 24.1e9  # another transformer, no second pair of text encoders
    bounded = checkup._needs(settings(memory_gb=40), both, Preset("none", "none"))[0].device
    assert one < bounded < two
    (fit,) = checkup.fits(settings(), both, [card(48)])
    assert fit.verdict == "warning"


def test_fp8_on_a_gpu_without_it_is_broken_as_loading_says() -> None:
    (fit,) = checkup.fits(settings(quantization="fp8"), [DEV], [card(80, "8.0")])
    assert (fit.verdict, "8.9" in fit.detail) == ("broken", True)


def test_a_cpu_is_judged_by_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 20_000_000_000)
    (fit,) = checkup.fits(settings(device="cpu"), [REGISTRY["random:FLUX.1-dev"]], [])
    assert (fit.verdict, "20.0 GB are free" in fit.detail) == ("broken", True)
    (fit,) = checkup.fits(settings(device="cpu"), [REGISTRY["flux-shapes"]], [])
    assert fit.verdict == "ok"


def test_every_model_is_judged_by_itself(tmp_path: Path) -> None:
    without_layer, foreign = tmp_path / "short", tmp_path / "sd3"
    shutil.copytree(SHAPES, without_layer)
    config = json.loads((without_layer / "transformer" / "config.json").read_text())
    (without_layer / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    foreign.mkdir()
    (foreign / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    (tmp_path / "empty").mkdir()
    models = ("flux-shapes", str(without_layer), str(foreign), str(tmp_path / "empty"), "/no/such/model", "a/b c")
    findings = checkup.devices_and_models(settings(models=models, device="cpu"))
    told = [(finding.verdict, finding.detail) for finding in findings if finding.subject == "model"]
    assert [verdict for verdict, _ in told] == ["broken", "ok", "broken", "broken", "broken", "warning"]
    for (_, detail), words in zip(
        told,
        ("there is no folder /no", "flux-shapes", "missing", "StableDiffusion3Pipeline", "no model_index.json", "b c"),
        strict=True,
    ):
        assert words in detail


def test_models_of_one_name_are_broken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(SHAPES, tmp_path / name / "mine")
    findings = checkup.devices_and_models(
        settings(models=tuple(str(tmp_path / n / "mine") for n in "ab"), device="cpu")
    )
    assert any(f.verdict == "broken" and "two models have the name mine" in f.detail for f in findings)


def test_single_files_are_judged_too(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_bytes(b"<html>please log in</html>")
    stored = (SHAPES / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(stored)
    models = (str(tmp_path / "page.safetensors"), str(tmp_path / "mine.safetensors"), f"{SHAPES}+mine.safetensors")
    findings = checkup.devices_and_models(settings(models=models, model_dirs=(str(tmp_path),), device="cpu"))
    told = [(finding.verdict, finding.detail) for finding in findings if finding.subject == "model"]
    assert [verdict for verdict, _ in told] == ["broken", "broken", "ok"]
    assert "mine.safetensors needs CLIP" in told[1][1]
