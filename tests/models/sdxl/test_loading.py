"""Folders of SDXL as diffusers writes them, and UNets in files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.errors import LoadError
from models.examine import check
from models.first_look import first_look
from models.loading import PartCache, load
from models.registry import TINY_LIGHTNING, TINY_PLAYGROUND, TINY_SDXL, ModelSpec
from models.sdxl.components import SdxlComponents
from tests.models.conftest import copy_of
from tests.models.sdxl.folders import save_sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("sdxls") / "tiny-sdxl")


def test_a_folder_is_known_by_its_pipeline_and_schedule(folder: Path, tmp_path: Path) -> None:
    spec = resolve(str(folder))
    assert (spec.family, spec.variant, spec.max_sequence_length) == ("sdxl", "sdxl", 77)
    lightning = resolve(str(copy_of(folder, tmp_path / "sdxl-lightning-mine")))
    assert (lightning.variant, lightning.default_steps, lightning.default_guidance) == ("lightning", 4, 1.0)
    assert lightning.distilled_steps is None
    few = resolve(str(copy_of(folder, tmp_path / "sdxl-lightning-2step")))
    assert (few.variant, few.default_steps, few.distilled_steps) == ("lightning", 2, 2)
    playground = resolve(str(save_sdxl(tmp_path / "any-name", TINY_PLAYGROUND)))
    assert (playground.variant, playground.default_steps, playground.default_guidance) == ("playground", 25, 3.0)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("owner/playground-v2.5-1024px-aesthetic", "playground"),
        ("owner/stable-diffusion-xl-base-1.0", "sdxl"),
        ("owner/my-SDXL-Lightning", "lightning"),
    ],
)
def test_an_unknown_repository_is_known_by_its_name(name: str, variant: str) -> None:
    spec = resolve(name)
    assert (spec.family, spec.variant) == ("sdxl", variant)


def test_a_folder_loads_as_it_was_saved(folder: Path) -> None:
    first_look(resolve(str(folder)))
    check(resolve(str(folder)))
    loaded: SdxlComponents = load(resolve(str(folder)), CpuAccelerator())
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.unet.state_dict().items())
    assert loaded.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert loaded.empty_is_zero


def test_a_unet_in_a_file_takes_the_place_of_the_folders(folder: Path, tmp_path: Path) -> None:
    lightning = save_sdxl(tmp_path / "other", TINY_LIGHTNING)
    few, one = tmp_path / "sdxl_lightning_8step_unet.safetensors", tmp_path / "sdxl_lightning_1step_unet_x0.safetensors"
    for file in (few, one):
        file.write_bytes((lightning / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    spec = resolve(f"{folder}+{few}")
    assert (spec.variant, spec.default_steps, spec.distilled_steps) == ("lightning", 8, 8)
    first_look(spec)
    loaded: SdxlComponents = load(spec, CpuAccelerator())
    assert loaded.scheduler_config["timestep_spacing"] == "trailing"
    alone: SdxlComponents = load(resolve(f"{folder}+{one}"), CpuAccelerator())
    assert alone.scheduler_config["prediction_type"] == "sample"
    assert alone.spec.distilled_steps == 1


def test_text_encoders_and_vae_are_shared_between_checkpoints(folder: Path, tmp_path: Path) -> None:
    file, cache = tmp_path / "sdxl_lightning_4step_unet.safetensors", PartCache()
    file.write_bytes((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    first = load(resolve(str(folder)), CpuAccelerator(), cache=cache)
    second = load(resolve(f"{folder}+{file}"), CpuAccelerator(), cache=cache)
    assert second.text_encoder_2 is first.text_encoder_2
    assert second.shared == {"text_encoder", "text_encoder_2", "vae"}


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"cross_attention_dim": 48}, "UNet2DConditionModel|tensors|width 40"),
        ("unet/config.json", {"in_channels": 9}, "tensors|channels"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "tensors|LCM"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler is not served"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "another architecture"),
        ("vae/config.json", {"latent_channels": 8}, "tensors|channels"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, object], words: str
) -> None:
    spoilt = copy_of(folder, tmp_path / "spoilt")
    values = json.loads((spoilt / file).read_text()) | changes
    (spoilt / file).unlink()
    (spoilt / file).write_text(json.dumps(values))
    with pytest.raises(LoadError, match=words):
        check(ModelSpec("spoilt", str(spoilt), family="sdxl", variant="sdxl"))


def test_a_missing_part_is_seen_without_torch(folder: Path, tmp_path: Path) -> None:
    spoilt = copy_of(folder, tmp_path / "spoilt")
    for file in (spoilt / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(LoadError, match="spoilt/unet: no safetensors"):
        first_look(resolve(str(spoilt)))


def test_what_it_has_no_form_for_is_refused(folder: Path) -> None:
    with pytest.raises(LoadError, match="no blocks that could wait"):
        load(TINY_SDXL, CpuAccelerator(), offload="text+blocks")
    single = ModelSpec("file", str(folder / "unet" / "diffusion_pytorch_model.safetensors"), family="sdxl")
    with pytest.raises(LoadError, match="no UNet of SDXL in the layout of latent diffusion"):
        load(single, CpuAccelerator())


def test_text_encoders_may_wait_on_the_host() -> None:
    components: SdxlComponents = load(TINY_SDXL, CpuAccelerator(), offload="text")
    assert components.unet.device.type == "cpu"
    assert all(parameter.is_meta for parameter in components.text_encoder_2.parameters())
