"""Folders of FLUX.2 [dev] as diffusers and transformers write them, and what they count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file
from transformers import Mistral3ForConditionalGeneration, MistralConfig

from models import flops
from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.counts import counts_of
from models.errors import LoadError
from models.first_look import first_look
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.flux2.text_encoder import MISTRAL, MistralPromptEncoder
from models.loading import load
from models.memory import FP8_CAPABILITY, PRESETS, Preset, need, presumed_architecture, recommend
from models.registry import REGISTRY, TINY_FLUX2_DEV
from tests.models.flux2.folders import save_dev, whole_encoder
from tests.models.flux2.test_counts import rotations
from tests.models.flux2.test_single_files import bfl
from tests.models.single.writers import write
from tests.models.test_flops import counted
from tests.models.test_memory import on_meta, parameters

TINY = ARCHITECTURES[TINY_FLUX2_DEV.source]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With more layers than are read, and the part that sees pictures."""
    return save_dev(tmp_path_factory.mktemp("devs") / "tiny-dev")


def test_a_folder_is_known_and_only_what_is_read_is_held(folder: Path) -> None:
    spec = resolve(str(folder))
    assert (spec.family, spec.variant, spec.default_steps, spec.default_guidance) == ("flux2", "flux2-dev", 28, 4.0)
    first_look(spec)
    components: Flux2Components = load(spec, CpuAccelerator())
    assert components.reading is MISTRAL
    assert components.guidance_embeds
    pipeline = components.pipeline()
    ours, _ = pipeline.encode_prompt("a red circle", max_sequence_length=200)
    pipeline.register_modules(
        text_encoder=Mistral3ForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    )
    theirs, _ = pipeline.encode_prompt("a red circle", max_sequence_length=200)
    assert torch.equal(ours, theirs)
    assert float(theirs.detach().std()) > 0.005


def test_a_text_encoder_that_ends_too_early_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.models.conftest import copy_of

    spoilt = copy_of(folder, tmp_path / "spoilt")
    for file in (spoilt / "text_encoder").iterdir():
        file.unlink()
    whole_encoder(29).save_pretrained(spoilt / "text_encoder")
    with pytest.raises(LoadError, match="29 layers, but the transformer reads layer 30"):
        load(resolve(str(spoilt)), CpuAccelerator())


@pytest.mark.parametrize(
    ("name", "variant", "steps", "guidance"),
    [("flux2-dev-Q8", "flux2-dev", 28, 4.0), ("flux2_turbo", "flux2-turbo", 8, 2.5)],
)
def test_a_folder_takes_the_transformer_of_a_file(
    folder: Path, tmp_path: Path, name: str, variant: str, steps: int, guidance: float
) -> None:
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    file = write(tmp_path / f"{name}.safetensors", bfl(state))
    spec = resolve(f"{folder}+{file}")
    assert (spec.variant, spec.default_steps, spec.default_guidance) == (variant, steps, guidance)
    first_look(spec)
    loaded: Flux2Components = load(spec, CpuAccelerator())
    own = loaded.transformer.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items())
    assert presumed_architecture(resolve(f"FLUX.2-dev+{file}")) == ARCHITECTURES["random:FLUX.2-dev"]


@pytest.mark.parametrize(
    ("name", "variant"), [("owner/FLUX.2-dev", "flux2-dev"), ("owner/flux2-dev-turbo", "flux2-turbo")]
)
def test_an_unknown_repository_is_known_by_its_name(name: str, variant: str) -> None:
    assert (resolve(name).family, resolve(name).variant) == ("flux2", variant)


def test_every_parameter_and_product_is_counted() -> None:
    made, tiny = counts_of(ARCHITECTURES["random:FLUX.2-dev"]), counts_of(TINY)
    arch = ARCHITECTURES["random:FLUX.2-dev"]
    assert made.transformer == parameters(on_meta(lambda: Flux2Transformer2DModel(**arch.transformer)))
    assert made.text["text_encoder"] == parameters(on_meta(lambda: MistralPromptEncoder(MistralConfig(**arch.text))))
    assert made.transformer / 1e9 == pytest.approx(32.2, rel=0.01)
    encoder = MistralPromptEncoder(MistralConfig(**TINY.text))
    assert tiny.text["text_encoder"] == sum(parameter.numel() for parameter in encoder.parameters())
    run = counted(lambda: encoder(torch.zeros(1, 11, dtype=torch.long)))
    assert run - flops.qwen3_flops(TINY.text, 11, TINY.read[-1]) in rotations(TINY.text, 11)


def test_a_step_has_the_published_count() -> None:
    request = flops.request_flops(ARCHITECTURES["random:FLUX.2-dev"], 1024, 1024, steps=28, text_tokens=512)
    assert request.step / 1e12 == pytest.approx(282.6, rel=2e-3)


def test_the_tables_of_manual_and_readme_are_what_is_counted() -> None:
    root = Path(__file__).parents[3]
    lines = [*(root / "docs" / "models.md").read_text().splitlines(), *(root / "README.md").read_text().splitlines()]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if " GB | `FLUX.2-" in line]
    assert len(rows) == 13
    for card, name, flags, *told in rows:
        arch, room = presumed_architecture(REGISTRY[name]), int(0.96e9 * int(card.removesuffix(" GB")))
        fit = recommend(arch, room, FP8_CAPABILITY)
        assert fit is not None
        assert (fit.flags or "none") == flags
        assert told in ([], [f"{need(arch, fit).device / 1e9:.1f} GB"])


def test_the_table_of_dev_is_what_is_counted() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    table = manual.partition("## FLUX.2 [dev]")[2].partition("## ")[0].splitlines()
    rows = {
        cells[1].strip().removeprefix("dev, ").strip("`"): cells[2:4]
        for cells in (line.split("|") for line in table if " GB | " in line)
    }
    known = {preset.flags or "no flags": need(ARCHITECTURES["random:FLUX.2-dev"], preset) for preset in PRESETS}
    assert len(rows) == 6
    for flags, told in rows.items():
        assert [cell.strip() for cell in told] == [
            f"{n / 1e9:.1f} GB" for n in (known[flags].device, known[flags].host)
        ]


def test_it_is_counted_without_a_hub() -> None:
    arch = presumed_architecture(REGISTRY["FLUX.2-dev"])
    whole, tight = need(arch, Preset("none", "none")), need(arch, Preset("fp8", "text+blocks"))
    assert 100e9 < whole.device < 110e9
    assert tight.device < 12e9
