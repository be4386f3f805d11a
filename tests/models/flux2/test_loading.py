"""Folders of FLUX.2 [klein] as diffusers writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.errors import LoadError
from models.examine import check
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import REGISTRY, TINY_KLEIN, ModelSpec
from tests.models.conftest import copy_of
from tests.models.flux2.folders import save_klein


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_klein(tmp_path_factory.mktemp("kleins") / "tiny-klein")


def test_a_folder_is_known_by_its_pipeline(folder: Path, tmp_path: Path) -> None:
    spec = resolve(str(folder))
    assert (spec.family, spec.variant, spec.default_steps, spec.default_guidance) == ("flux2", "klein-4b", 4, 1.0)
    base = copy_of(folder, tmp_path / "undistilled")
    spoil(base / "model_index.json", is_distilled=False)
    spec = resolve(str(base))
    assert (spec.family, spec.variant, spec.default_steps, spec.default_guidance) == ("flux2", "klein-base-4b", 50, 4.0)
    spoil(base / "transformer" / "config.json", num_attention_heads=32)
    assert resolve(str(base)).variant == "klein-base-9b"


def test_a_folder_says_that_references_pass_once(folder: Path, tmp_path: Path) -> None:
    once = copy_of(folder, tmp_path / "any-name")
    spoil(once / "model_index.json", _class_name="Flux2KleinKVPipeline", is_distilled=None)
    spec = resolve(str(once))
    assert (spec.family, spec.variant, spec.default_steps) == ("flux2", "klein-4b", 4)
    loaded: Flux2Components = load(spec, CpuAccelerator())
    assert (loaded.passes_references_once, loaded.is_distilled) == (True, True)
    assert not load(resolve(str(folder)), CpuAccelerator()).passes_references_once


@pytest.mark.parametrize("name", ["owner/FLUX.2-klein-4B", "owner/my-flux2-klein-base-9b-tuned"])
def test_an_unknown_repository_is_known_by_its_name(name: str) -> None:
    spec = resolve(name)
    assert spec.family == "flux2"
    assert spec.variant == ("klein-4b" if name.endswith("4B") else "klein-base-9b")


def test_a_name_of_the_registry_may_be_given_a_folder(folder: Path) -> None:
    spec = resolve(f"FLUX.2-klein-4B={folder}")
    assert (spec.name, spec.source, spec.family) == ("FLUX.2-klein-4B", str(folder), "flux2")


def test_only_the_layers_that_are_read_are_held_and_say_the_same(folder: Path) -> None:
    components: Flux2Components = load(spec_of(folder), CpuAccelerator())
    whole = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").eval()
    assert (len(whole.model.layers), len(components.text_encoder.layers)) == (30, 27)  # type: ignore[arg-type]
    assert not hasattr(components.text_encoder, "lm_head")
    pipeline = components.pipeline()
    ours, _ = pipeline.encode_prompt("a red circle", max_sequence_length=24)
    pipeline.register_modules(text_encoder=whole)
    theirs, _ = pipeline.encode_prompt("a red circle", max_sequence_length=24)
    assert torch.equal(ours, theirs)
    assert float(theirs.detach().std()) > 0.1


def test_parts_are_shared_between_checkpoints_of_equal_files(folder: Path, tmp_path: Path) -> None:
    from models.loading import PartCache

    cache, other = PartCache(), copy_of(folder, tmp_path / "other")
    first = load(spec_of(folder), CpuAccelerator(), cache=cache)
    second = load(spec_of(other), CpuAccelerator(), cache=cache)
    assert second.text_encoder is first.text_encoder
    assert {"text_encoder", "vae"} <= second.shared


def test_a_folder_is_checked_before_it_is_read(folder: Path) -> None:
    check(resolve(str(folder)))


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "Flux2ModularPipeline"}, "another architecture"),
        ("transformer/config.json", {"joint_attention_dim": 64}, "context_embedder"),
        ("text_encoder/config.json", {"num_hidden_layers": 12, "layer_types": ["full_attention"] * 12}, "layer 27"),
        ("text_encoder/config.json", {"vocab_size": 40}, "embed_tokens"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, object], words: str
) -> None:
    spoilt = copy_of(folder, tmp_path / "spoilt")
    spoil(spoilt / file, **changes)
    with pytest.raises(LoadError, match=words):
        load(spec_of(spoilt), CpuAccelerator())


def test_a_tokenizer_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    spoilt = copy_of(folder, tmp_path / "spoilt")
    (spoilt / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(LoadError, match="chat template"):
        load(spec_of(spoilt), CpuAccelerator())


def test_another_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    narrow = ARCHITECTURES[TINY_KLEIN.source].text | {"hidden_size": 8, "num_hidden_layers": 28}
    spoilt = copy_of(folder, tmp_path / "spoilt")
    for file in (spoilt / "text_encoder").iterdir():
        file.unlink()
    Qwen3ForCausalLM(Qwen3Config(**narrow)).save_pretrained(spoilt / "text_encoder")
    with pytest.raises(LoadError, match="vectors of width 24"):
        load(spec_of(spoilt), CpuAccelerator())


def test_a_single_file_says_what_it_needs_beside_it(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    spec = ModelSpec("file", str(weights), family="flux2", variant="klein-4b")
    with pytest.raises(LoadError, match="needs Qwen3"):
        load(spec, CpuAccelerator())


def test_the_table_lists_all_five() -> None:
    kleins = [spec for spec in REGISTRY.values() if spec.family == "flux2" and not spec.source.startswith("random:")]
    assert {spec.variant for spec in kleins} == {"klein-4b", "klein-9b", "klein-base-4b", "klein-base-9b", "flux2-dev"}
    assert {spec.variant for spec in kleins if not spec.gated} == {"klein-4b", "klein-base-4b"}


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(folder.name, str(folder), family="flux2", variant="klein-4b", max_sequence_length=24)


def spoil(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text()) | changes
    file.unlink()
    file.write_text(json.dumps(values))
