"""Folders of FLUX.3 in diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from transformers import Qwen3VLForConditionalGeneration

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.errors import LoadError
from models.examine import check
from models.first_look import first_look
from models.flux3.components import Flux3Components, _Processor
from models.loading import load
from models.registry import REGISTRY
from pipelines.families.flux3.encode import encode_prompt
from tests.models.conftest import copy_of
from tests.models.flux3.folders import save_flux3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux3(tmp_path_factory.mktemp("flux3") / "tiny-flux3")


def spoil(file: Path, **changes: object) -> None:
    """Change a JSON file of a copy, which shares its files with the original."""
    values = json.loads(file.read_text()) | changes
    file.unlink()
    file.write_text(json.dumps(values))


def test_a_folder_is_known_by_its_pipeline_and_by_its_transformer(folder: Path, tmp_path: Path) -> None:
    spec = resolve(str(folder))
    assert (spec.family, spec.variant, spec.default_steps) == ("flux3", "flux3-klein", 16)
    base = copy_of(folder, tmp_path / "other")
    spoil(base / "transformer" / "config.json", flow_map=False)
    (base / "model_index.json").rename(base / "modular_model_index.json")
    spec = resolve(str(base))
    assert (spec.variant, spec.default_steps, spec.default_guidance) == ("flux3-klein-base", 50, 4.0)
    assert resolve("owner/my-flux-3-image-klein-base").variant == "flux3-klein-base"
    assert resolve("owner/flux-3-image-klein").family == "flux3"
    assert resolve(f"FLUX.3-klein={folder}").name == "FLUX.3-klein"
    assert REGISTRY["FLUX.3-klein"].gated


def test_a_folder_is_checked_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    first_look(resolve(str(folder)))
    check(resolve(str(folder)))
    wrong = copy_of(folder, tmp_path / "wrong")
    spoil(wrong / "transformer" / "config.json", num_layers=3)
    with pytest.raises(LoadError, match=r"transformer.*missing"):
        check(resolve(str(wrong)))
    (wrong / "tokenizer" / "chat_template.jinja").unlink()
    spoil(wrong / "transformer" / "config.json", num_layers=2)
    with pytest.raises(LoadError, match="no chat template"):
        check(resolve(str(wrong)))


def test_only_what_is_read_of_the_text_encoder_is_held_and_says_what_diffusers_hears(folder: Path) -> None:
    parts: Flux3Components = load(resolve(str(folder)), CpuAccelerator())
    whole = Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    assert len(parts.text_encoder.layers) == 32  # type: ignore[arg-type]
    for prompt in ("a red circle", "", "a long prompt " * 30):
        with torch.inference_mode():
            ours = encode_prompt(parts, prompt, 240, lambda tensor: tensor).tokens
            theirs = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
                whole, _Processor(parts.tokenizer), prompt, max_sequence_length=240
            )[0]
        assert torch.equal(ours, theirs), prompt
        assert len(ours) in (80, 240)
    assert float(theirs.std()) > 0.1


def test_norms_of_queries_and_keys_stay_exact_in_half_precision(folder: Path) -> None:
    parts: Flux3Components = load(resolve(str(folder)), CpuAccelerator(), torch.bfloat16)
    attn = parts.transformer.single_transformer_blocks[0].attn
    assert (attn.norm_q.weight.dtype, attn.to_q.weight.dtype) == (torch.float32, torch.bfloat16)
