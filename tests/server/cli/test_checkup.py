"""What the doctor says of models, and of the devices that shall hold them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from models import cards, host_memory
from models.counts import AnyArchitecture, counts_of
from models.memory import Preset, need, presumed_architecture, streamed_bytes
from models.registry import REGISTRY, ModelSpec
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
        ("text", 32, "warning", "pictures of 2368 x 1792 are decoded in tiles; --offload text+modulation"),
        ("text", 30, "warning", "pictures of 2368 x 1792 are decoded in tiles; "),
        ("none", 141, "ok", ""),
        (
            "none",
            12,
            "warning",
            "--offload text+blocks (6.4 to 16.5 GB, each step passes 17.2 GB, 0.72 s over PCIe 4.0;",
        ),
        (
            "none",
            12,
            "warning",
            "faster: its transformer in float8 with --offload text+modulation, decoded in tiles (12.0 GB), see docs/",
        ),
        ("none", 2, "warning", "no setting"),
    ],
)
def test_which_flags_fit_a_gpu(offload: str, gib: int, verdict: str, words: str) -> None:
    (fit,) = checkup.fits(settings(offload=offload), [DEV], [card(gib), card(200)])
    assert (fit.verdict, fit.subject) == (verdict, "fit")
    assert words in fit.advice
    assert "FLUX.1-dev" in fit.detail
    assert "A Card" in fit.detail


def preset_of(flags: str, bits: float = 16) -> Preset:
    words = flags.split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    tuning = given.pop("--tuning", "")
    assert given.keys() <= {"--quantization", "--offload"}
    return Preset(given.get("--quantization", "none"), given.get("--offload", "none"), tuning != "replay=off", bits)


def counted(arch: AnyArchitecture, flags: str, tiles: str | None, bits: float = 16) -> float:
    """GB that these flags need for the usual picture."""
    needed = need(arch, preset_of(flags, bits))
    return (needed.in_tiles if tiles else needed.device) / 1e9


ADVICE = re.compile(
    r"(?:pictures of 2368 x 1792 (?:may fail|are decoded in tiles); )?"
    r"(?P<flags>no flags|--[^(,;]+?)(?P<tiles>, decoded in tiles)?"
    r" \((?P<gb>[\d.]+) to [\d.]+ GB(?:, each step passes (?P<moved>[\d.]+) GB, [\d.]+ s over PCIe 4\.0)?"
    r"(?:; faster: (?:its transformer in (?P<file>.+?) with )?(?P<faster>--[^,(]+?)(?P<in_tiles>, decoded in tiles)?"
    r" \((?P<less>[\d.]+) GB\), see docs/models\.md)?\)"
)


@pytest.mark.parametrize("gib", [8, 12, 16, 24, 48, 80])
@pytest.mark.parametrize(
    "name", ["FLUX.2-klein-4B", "FLUX.2-klein-9B", "FLUX.1-dev", "FLUX.2-dev", "FLUX.3-klein", "SDXL"]
)
def test_what_is_advised_fits_by_the_same_count(name: str, gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 128_000_000_000)
    spec, room = REGISTRY[name], (gib << 30) / 1e9
    arch = presumed_architecture(spec)
    (fit,) = checkup.fits(settings(models=(name,)), [spec], [card(gib)])
    if fit.verdict == "ok" or fit.advice.endswith("no setting holds them whole"):
        assert counted(arch, "", None) <= room
        return
    told = ADVICE.fullmatch(fit.advice)
    assert told is not None, fit.advice
    flags = told["flags"].replace("no flags", "")
    assert counted(arch, flags, told["tiles"]) <= room
    assert told["gb"] == f"{counted(arch, flags, told['tiles']):.1f}"
    if "text+blocks" in flags:
        assert spec.family != "sdxl", "its loader refuses it"
        preset = preset_of(flags)
        assert told["moved"] == f"{streamed_bytes(counts_of(arch), preset.block_itemsize) / 1e9:.1f}"
    if told["faster"] is None:
        return
    assert spec.family in ("flux", "flux2"), "no other is read from such files"
    assert "text+blocks" not in told["faster"]
    less = counted(arch, told["faster"], told["in_tiles"], cards._BITS[told["file"] or "bfloat16"])
    assert less <= room
    assert told["less"] == f"{less:.1f}"


def test_what_is_faster_is_said_of_the_model_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 128_000_000_000)

    def advice(gib: int, *names: str) -> str:
        specs = [REGISTRY[name] for name in names]
        return checkup.fits(settings(models=names), specs, [card(gib)])[0].advice

    assert "faster: its transformer in GGUF Q8_0 with --offload text, decoded in tiles" in advice(8, "FLUX.2-klein-4B")
    assert "faster: its transformer in GGUF Q4_K with --offload text, decoded in tiles" in advice(24, "FLUX.2-dev")
    assert "faster" not in advice(16, "FLUX.2-dev"), "no form of it fits"
    assert "faster" not in advice(8, "FLUX.3-klein"), "it is read from folders alone"
    assert "faster" not in advice(8, "FLUX.2-klein-4B", "FLUX.1-dev"), "two that are drawn with"
    monkeypatch.setattr(host_memory, "available", lambda: 40_000_000_000)
    assert "faster" not in advice(24, "FLUX.2-dev"), "nor where the host lacks the memory"


def test_sdxl_fits_eight_gigabytes_with_its_pictures_in_tiles() -> None:
    sdxl = REGISTRY["SDXL"]
    (fit,) = checkup.fits(settings(models=("SDXL",)), [sdxl], [card(8)])
    assert fit.advice == "--offload text, decoded in tiles (7.9 to 9.0 GB)"
    (fit,) = checkup.fits(settings(models=("SDXL",)), [sdxl], [card(12)])
    assert fit.advice == "pictures of 2368 x 1792 are decoded in tiles; no setting holds them whole"
    (fit,) = checkup.fits(settings(models=("SDXL",)), [sdxl], [card(6)])
    assert fit.advice == "no setting makes it fit on this machine"


def test_large_pictures_may_fail_where_not_even_tiles_help() -> None:
    spec = REGISTRY["FLUX.2-dev"]
    checked = settings(models=("FLUX.2-dev",), quantization="fp8", offload="text+blocks")
    (fit,) = checkup.fits(checked, [spec], [card(10, "8.9")])
    assert fit.advice.startswith("pictures of 2368 x 1792 may fail; ")
    (fit,) = checkup.fits(checked, [spec], [card(12, "8.9")])
    assert fit.advice.startswith("pictures of 2368 x 1792 are decoded in tiles; ")


def table(heading: str, text: str) -> dict[int, tuple[str, str]]:
    """(model, flags) by gigabytes, of the first table under a heading."""
    rows = re.findall(r"^\| (\d+) GB \| `(.+?)` \| (?:none|`(.+?)`) \|", text.partition(heading)[2], re.MULTILINE)
    return {int(size): (name, flags) for size, name, flags in rows}


def test_the_first_model_is_that_of_the_tables() -> None:
    root = Path(__file__).parents[3]
    manual = (root / "docs" / "models.md").read_text()
    assert "\n".join(cards.first_markdown()) in manual
    readme = table("## Which GPU", (root / "README.md").read_text())
    assert {8, 12, 16, 24, 48, 80} <= readme.keys()
    for gb, (name, flags) in (readme | table("## Which model for which card", manual)).items():
        for sold in (gb << 30, int(0.985 * (gb << 30))):  # what a card of that size reports
            said = checkup.first([{"name": "A Card", "memory": sold, "capability": "8.9"}]).detail
            assert f"--model {name}{f' {flags}' if flags else ''} (" in said
        assert counted(presumed_architecture(REGISTRY[name]), flags, None) <= 0.96 * gb


def test_the_first_model_is_what_the_whole_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(gib: int, capability: str = "8.9") -> str:
        finding = checkup.first([card(gib, capability), card(200)])
        assert (finding.subject, finding.verdict, finding.advice) == ("first model", "ok", "")
        return finding.detail

    assert "--model FLUX.2-klein-4B --offload text+blocks (6.9 GB; Apache-2.0)" in said(12, "8.6"), "it has no float8"
    assert "--model FLUX.2-dev --offload text (74.8 GB; FLUX [dev] Non-Commercial, to be accepted)" in said(80)
    assert "--model FLUX.2-klein-4B --offload text+blocks (4.9 GB, decoded in tiles; " in said(6)
    embedded = "the embedded models, served without --model: flux-shapes, flux2-shapes, sdxl-shapes"
    assert embedded in said(2)
    assert embedded in checkup.first([]).detail
    monkeypatch.setattr(host_memory, "available", lambda: 16_000_000_000)
    assert "--model FLUX.2-klein-9B (37.5 GB" in said(80), "dev's text encoder has no place to wait"
    monkeypatch.setattr(host_memory, "available", lambda: 4_000_000_000)
    assert embedded in said(8)


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


def test_what_helps_others_draw_is_counted_and_named() -> None:
    specs = [DEV, REGISTRY["FLUX.1-Redux-dev"], REGISTRY["Depth-Anything-V2-Small"]]
    alone, (fit,) = checkup.fits(settings(), [DEV], [card(141)])[0], checkup.fits(settings(), specs, [card(141)])
    assert alone.detail.startswith("FLUX.1-dev: 40.6 of")
    assert fit.detail.startswith("FLUX.1-dev, FLUX.1-Redux-dev, Depth-Anything-V2-Small: 41.6 of")
    (waiting,) = checkup.fits(settings(offload="text"), specs, [card(80)])
    assert "9.8 GB wait on the host" in waiting.detail, "they do not"
    net = ModelSpec("net", "owner/net", variant="controlnet")
    (fit,) = checkup.fits(settings(), [DEV, net], [card(141)])
    assert fit.detail.startswith("FLUX.1-dev (without net, not on this machine): 40.6 of")


def test_the_form_that_is_named_as_faster_leaves_room_for_what_helps() -> None:
    def faster(*specs: ModelSpec) -> str:
        return checkup.fits(settings(), specs, [card(12)])[0].advice.partition("faster: ")[2]

    assert faster(DEV).startswith(
        "its transformer in float8 with --offload text+modulation, decoded in tiles (12.0 GB)"
    )
    assert "GGUF" in faster(DEV, REGISTRY["FLUX.1-Redux-dev"])


def test_the_doctor_counts_all_that_serve_would_load(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"torch": "2", "diffusers": "0", "transformers": "5", "threads": 2, "gpus": []}
    monkeypatch.setattr(checkup, "_examine", lambda arguments, folders: (facts, {}, None))
    models = ("random:FLUX.1-dev", "FLUX.1-Redux-dev", "Depth-Anything-V2-Small")
    findings = checkup.devices_and_models(settings(models=models, device="cpu"))
    (fit,) = [finding for finding in findings if finding.subject == "fit"]
    assert fit.detail.startswith("random:FLUX.1-dev, FLUX.1-Redux-dev, Depth-Anything-V2-Small: 69.6 GB of weights")
    only = checkup.devices_and_models(settings(models=models[1:], device="cpu"))
    assert not [finding for finding in only if finding.subject == "fit"], "what draws is loaded by none of them"


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
