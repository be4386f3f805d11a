"""Loading what helps other checkpoints draw."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from diffusers import FluxControlNetModel
from PIL import Image

from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.auxiliaries import ControlNet, DepthEstimator, ReduxPrior, load_auxiliary
from models.errors import LoadError
from models.registry import ModelSpec
from pipelines.pictures.depth import depth_of
from pipelines.pictures.redux import picture_tokens, pixels_for
from tests.pipelines.families.flux1.families import save_estimator, tiny_prior


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, prior = tmp_path_factory.mktemp("prior"), tiny_prior()
    for part in ("image_encoder", "image_embedder"):
        prior.modules[part].save_pretrained(folder / part)  # type: ignore[operator]
    prior.image_processor.save_pretrained(folder / "feature_extractor")
    return folder


def spec(folder: Path, variant: str) -> ModelSpec:
    return ModelSpec("it", str(folder), variant=variant)  # type: ignore[arg-type]


def test_a_redux_prior_is_what_was_saved(prior_folder: Path) -> None:
    loaded = load_auxiliary(spec(prior_folder, "redux"), CpuAccelerator())
    assert isinstance(loaded, ReduxPrior)
    picture = Image.new("RGB", (9, 5), (200, 30, 60))
    seen = [pixels_for(loaded, picture)]
    assert picture_tokens(loaded, seen).equal(picture_tokens(tiny_prior(), seen))
    assert set(loaded.modules) == {"image_encoder", "image_embedder"}


def test_a_prior_without_its_weights_cannot_be_loaded(prior_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(prior_folder, tmp_path / "it")
    (tmp_path / "it" / "image_embedder" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(LoadError, match="image_embedder"):
        load_auxiliary(spec(tmp_path / "it", "redux"), CpuAccelerator())


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_a_controlnet_is_loaded_and_a_union_is_refused(tmp_path: Path) -> None:
    config = ARCHITECTURES["random:tiny"].transformer | {"num_layers": 1, "num_single_layers": 1}
    FluxControlNetModel(**config).save_pretrained(tmp_path / "one")
    FluxControlNetModel(**config, num_mode=3).save_pretrained(tmp_path / "union")
    loaded = load_auxiliary(spec(tmp_path / "one", "controlnet"), CpuAccelerator())
    assert isinstance(loaded, ControlNet)
    assert not loaded.net.training
    with pytest.raises(LoadError, match="union"):
        load_auxiliary(spec(tmp_path / "union", "controlnet"), CpuAccelerator())


def test_depth_covers_its_range_at_the_size_of_the_picture(tmp_path: Path) -> None:
    save_estimator(tmp_path)
    loaded = load_auxiliary(spec(tmp_path, "depth-estimator"), CpuAccelerator())
    assert isinstance(loaded, DepthEstimator)
    picture = Image.radial_gradient("L").convert("RGB").resize((50, 30))
    depth = depth_of(loaded, picture)
    assert depth.shape == (1, 3, 30, 50)
    assert (depth.min().item(), depth.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize("variant", ["redux", "controlnet", "depth-estimator", "dev"])
def test_a_folder_of_something_else_is_refused_in_one_sentence(tmp_path: Path, variant: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError):
        load_auxiliary(spec(tmp_path, variant), CpuAccelerator())
