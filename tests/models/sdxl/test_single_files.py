"""SDXL as one file draws what its folder draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.errors import LoadError
from models.examine import check
from models.first_look import first_look
from models.loading import load
from models.memory import presumed_architecture
from models.packed import is_packed
from models.sdxl.architectures import ARCHITECTURES
from models.sdxl.components import SdxlComponents
from pipelines.engine.engine import Engine
from pipelines.families.sdxl.runner import SdxlRunner
from tests.models.sdxl.files import narrow_sdxl, one_file, write_laid_out
from tests.models.single.writers import prefixed, write
from tests.pipelines.driving import drain, make_params, pictures, submit

UNET = "model.diffusion_model."
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxls") / "my-sdxl"
    narrow_sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return one_file(StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True))


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "juggernaut.safetensors", tensors)


def drawn(argument: str) -> NDArray[np.uint8]:
    spec = resolve(argument)
    runner = SdxlRunner(load(spec, CpuAccelerator()), CpuAccelerator())
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", make_params(model=spec.name, guidance_scale=3.0, width=64, height=48, num_inference_steps=2))
    (picture,) = pictures(drain(engine), "a")
    return picture


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.uint8]:
    picture = drawn(str(folder))
    assert picture.std() > 1
    return picture


def test_a_file_is_a_whole_checkpoint(file: Path, expected: NDArray[np.uint8]) -> None:
    spec = resolve(str(file))
    assert (spec.family, spec.variant, spec.max_sequence_length) == ("sdxl", "sdxl", 77)
    first_look(spec)
    check(spec)
    assert presumed_architecture(spec) == ARCHITECTURES["random:SDXL"]
    assert np.array_equal(drawn(str(file)), expected)


def test_every_part_is_what_diffusers_makes_of_the_file(file: Path, folder: Path) -> None:
    ours: SdxlComponents = load(resolve(str(file)), CpuAccelerator())
    theirs = StableDiffusionXLPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own, other = ours.modules[part].state_dict(), getattr(theirs, part).state_dict()
        assert own.keys() == other.keys()
        made = {name: tensor for name, tensor in other.items() if not tensor.is_meta}
        assert own.keys() - made.keys() <= {"text_projection.weight"}, "this width's is left without values there"
        assert all(torch.equal(own[name], tensor) for name, tensor in made.items()), part
    words = theirs.tokenizer_2("a", padding="max_length").input_ids
    assert ours.tokenizer_2("a", padding="max_length", max_length=77).input_ids == words


def test_a_folder_takes_the_unet_of_a_file(
    folder: Path, file: Path, tensors: dict[str, Tensor], tmp_path: Path, expected: NDArray[np.uint8]
) -> None:
    alone = {name.removeprefix(UNET): tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    forms = {"alone": alone, "comfy": prefixed("diffusion_model.", alone)}
    files = [file, *(write(tmp_path / f"{name}.safetensors", form) for name, form in forms.items())]
    for each in files:
        assert np.array_equal(drawn(f"{folder}+{each}"), expected), each.name
    with pytest.raises(LoadError, match=r"holds SDXL's UNet without its CLIP L, CLIP G, VAE; .* --model SDXL --trans"):
        first_look(resolve(str(files[1])))


@pytest.mark.parametrize(
    ("name", "beside", "variant", "steps", "schedule"),
    [
        ("dream_lightning_8step", (), "lightning", 8, {"timestep_spacing": "trailing"}),
        ("dream_lightning_16step", (), "lightning", 16, {"timestep_spacing": "trailing"}),
        ("sdxl_lightning", (), "lightning", 4, {"prediction_type": "epsilon"}),
        ("any", ("edm_mean", "edm_std"), "playground", 25, {"_class_name": "EDMDPMSolverMultistepScheduler"}),
        ("noob", ("v_pred", "ztsnr"), "sdxl", 30, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("plain", (), "sdxl", 30, {"timestep_spacing": "leading"}),
    ],
)
def test_what_it_was_trained_for_is_told_by_its_name_and_its_tensors(
    tensors: dict[str, Tensor], tmp_path: Path, name: str, beside: tuple[str, ...], variant: str, steps: int,
    schedule: dict[str, object],
) -> None:  # fmt: skip
    file = write(tmp_path / f"{name}.safetensors", tensors | {sign: torch.ones(4) for sign in beside})
    spec = resolve(str(file))
    assert (spec.variant, spec.default_steps) == (variant, steps)
    assert spec.distilled_steps == (steps if "step" in name else None)
    loaded: SdxlComponents = load(spec, CpuAccelerator())
    assert loaded.scheduler_config.items() >= schedule.items()
    assert (loaded.vae.config.get("latents_mean") is not None) == (variant == "playground")
    assert drawn(str(file)).std() > 1


def test_float8_stays_as_it_is_stored_and_draws_what_its_numbers_mean(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    packed = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim >= 2 and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    meant = {n: t.float() if t.dtype == torch.float8_e4m3fn else t for n, t in packed.items()}
    stored, plain = (write(tmp_path / f"{n}.safetensors", t) for n, t in (("stored", packed), ("plain", meant)))
    assert is_packed(load(resolve(str(stored)), CpuAccelerator()).unet)
    assert np.array_equal(drawn(str(stored)), drawn(str(plain)))


def test_a_unet_as_gguf_draws_what_its_numbers_mean(folder: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    alone = {name.removeprefix(UNET): tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    blocks, meant = write_laid_out(tmp_path / "unet.gguf", alone)
    plain = write(tmp_path / "plain.safetensors", meant)
    assert is_packed(load(resolve(f"{folder}+{blocks}"), CpuAccelerator()).unet)
    assert np.array_equal(drawn(f"{folder}+{blocks}"), drawn(f"{folder}+{plain}"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{UNET}input_blocks.1.0.in_layers.2.weight": None}, "cannot be used|missing"),
        ({f"{UNET}input_blocks.2.9.weight": torch.zeros(3)}, "have no place"),
        ({"conditioner.embedders.1.model.visual.proj": torch.zeros(3)}, "have no place"),
        ({f"{UNET}middle_block.1.proj_in.weight": torch.zeros(3, 3)}, "another shape"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "channels: 4, but the UNet takes 9"),
        ({"first_stage_model.decoder.conv_in.weight": None}, "without its VAE"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(
    tensors: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], words: str
) -> None:
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    file = write(tmp_path / "spoilt.safetensors", changed)
    with pytest.raises(LoadError, match=words):
        check(resolve(str(file)))


def test_a_declared_name_brings_its_defaults(file: Path, folder: Path) -> None:
    spec = resolve(f"SDXL={file}")
    assert (spec.name, spec.source, spec.default_steps) == ("SDXL", str(file), 30)
    assert resolve(f"mine={file}").variant == "sdxl"
    with pytest.raises(LoadError, match="holds SDXL, which is served whole"):
        first_look(resolve(f"flux-shapes+{file}"))
