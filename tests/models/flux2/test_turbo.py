"""FLUX.2 with a LoRA that is worked into its weights, as fal published Turbo: names, sums, what does not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import UnknownModelError, resolve, resolve_all
from models.errors import LoadError
from models.examine import check
from models.first_look import first_look
from models.fit import need_together
from models.flux2.architectures import TURBO_SIGMAS
from models.flux2.components import Flux2Components
from models.loading import PartCache, load, outlook
from models.memory import Preset
from models.packed import PackedLinear
from models.registry import UNNAMED
from tests.models.conftest import copy_of
from tests.models.flux2.folders import save_dev
from tests.pipelines.adapters.loras import random_lora, save_diffusers

NAME = "flux.2-turbo-lora.safetensors"
BESIDE = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dev(tmp_path_factory.mktemp("devs") / "tiny-dev")


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    """Over every linear there is, beside the folder."""
    transformer = Flux2Transformer2DModel.from_pretrained(folder / "transformer")
    return save_diffusers(random_lora(transformer, 3, seed=1, among=("",), but="no layer"), folder.parent / NAME)


def gains(lora: Path) -> dict[str, Tensor]:
    """What each weight gains."""
    tensors = load_file(lora)
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    return {
        f"{layer.removeprefix('transformer.')}.weight": tensors[f"{layer}.lora_B.weight"]
        @ tensors[f"{layer}.lora_A.weight"]
        for layer in layers
    }


def test_a_base_and_its_lora_are_one_model_of_the_kind_that_the_name_says(folder: Path, lora: Path) -> None:
    spec = resolve(f"FLUX.2-dev+{NAME}", [lora.parent])
    assert UNNAMED["flux2-turbo"] == f"FLUX.2-dev+{NAME}"
    assert (spec.name, spec.variant) == ("FLUX.2-dev+flux.2-turbo-lora", "flux2-turbo")
    assert (spec.default_steps, spec.default_guidance) == (8, 2.5)
    assert (spec.adapter, spec.transformer, spec.file) == (str(lora), None, None)
    first_look(spec)
    style = shutil.copy(lora, lora.with_name("style.safetensors"))
    assert (resolve(f"{folder}+{style}").variant, resolve(f"{folder}+{style}").default_steps) == ("flux2-dev", 28)


def test_comfyuis_folder_of_loras_is_searched(lora: Path, tmp_path: Path) -> None:
    held = tmp_path / "models" / "loras" / NAME
    held.parent.mkdir(parents=True)
    shutil.copy(lora, held)
    for root in (tmp_path, tmp_path / "models"):
        assert resolve(f"FLUX.2-dev+{NAME}", [root]).adapter == str(held)


def test_every_weight_gains_the_product(folder: Path, lora: Path, state: dict[str, Tensor]) -> None:
    loaded: Flux2Components = load(resolve(f"{folder}+{lora}"), CpuAccelerator())
    own, gained = loaded.transformer.state_dict(), gains(lora)
    assert own.keys() == state.keys()
    assert gained.keys() <= own.keys()
    for key, tensor in own.items():
        torch.testing.assert_close(tensor, state[key] + gained.get(key, 0))
    assert len(gained) > 20
    assert loaded.levels == TURBO_SIGMAS


def test_half_precision_is_rounded_once(folder: Path, lora: Path, state: dict[str, Tensor]) -> None:
    loaded = load(resolve(f"{folder}+{lora}"), CpuAccelerator(), torch.bfloat16)
    for key, gain in gains(lora).items():
        wanted = (state[key].bfloat16().float() + gain).bfloat16()
        assert torch.equal(loaded.transformer.state_dict()[key], wanted)


def test_float8_rounds_the_sum(folder: Path, lora: Path) -> None:
    spec = resolve(f"{folder}+{lora}")
    plain = load(spec, CpuAccelerator())
    rounded = load(spec, CpuAccelerator(), quantization="fp8")
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    near, exact = (each.transformer.transformer_blocks[0].attn.to_q(x) for each in (rounded, plain))
    assert 0 < float((near - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_packed_weights_keep_their_form_and_have_it_beside(
    folder: Path,
    lora: Path,
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    blocks = {key for key in state if "transformer_blocks." in key and key.endswith(".weight") and state[key].ndim == 2}
    stored = {key: tensor.to(torch.float8_e4m3fn) if key in blocks else tensor for key, tensor in state.items()}
    file = tmp_path / "flux2-dev-fp8.safetensors"
    save_file(stored, file)
    spec = resolve(f"{folder}+{file}+{lora}")
    assert spec.name == f"tiny-dev+{file.stem}+{lora.stem}"
    assert (spec.variant, spec.transformer, spec.adapter) == ("flux2-turbo", str(file), str(lora))
    assert resolve(f"{folder}+{lora}+{file}").variant == "flux2-turbo"
    loaded = load(spec, CpuAccelerator())
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    layer = loaded.transformer.get_submodule(BESIDE)
    assert isinstance(layer, PackedLinear)
    weight = stored[f"{BESIDE}.weight"].float() + gains(lora)[f"{BESIDE}.weight"]
    torch.testing.assert_close(layer(x), x @ weight.T)
    without = resolve(f"{folder}+{file}")
    added, plain = (outlook(each, torch.float32, PartCache())[0] for each in (spec, without))
    assert added - plain == lora.stat().st_size
    preset = Preset("none", "none")
    counted, alone = (need_together([each], preset, 64, 64).weights for each in (spec, without))
    assert counted - alone == pytest.approx(lora.stat().st_size, abs=2)


def test_the_base_beside_it_keeps_its_own_weights(folder: Path, lora: Path) -> None:
    cache = PartCache()
    both = [load(spec, CpuAccelerator(), cache=cache) for spec in resolve_all([f"{folder}+{lora}", str(folder)])]
    again = load(resolve(f"{folder}+{lora}"), CpuAccelerator(), cache=cache)
    assert both[1].shared == {"text_encoder", "vae"}
    assert not torch.equal(*(each.transformer.x_embedder.weight for each in both))
    assert again.transformer is both[0].transformer


@pytest.mark.parametrize("offload", ["text", "text+modulation", "text+blocks"])
def test_what_waits_on_the_host_has_it_too(folder: Path, lora: Path, offload: str) -> None:
    spec = resolve(f"{folder}+{lora}")
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    names = ("double_stream_modulation_img.linear", BESIDE, "single_transformer_blocks.1.attn.to_out")
    for name in names:
        layers = [
            load(spec, CpuAccelerator(), offload=each).transformer.get_submodule(name) for each in ("none", offload)
        ]
        wide = x.repeat(1, layers[0].weight.shape[1] // 32)
        torch.testing.assert_close(layers[1](wide), layers[0](wide))


def test_random_weights_take_one_too(lora: Path) -> None:
    spec = resolve(f"random:tiny-flux2-dev+{lora}")
    weights = [load(each, CpuAccelerator()).transformer.x_embedder.weight for each in (spec, resolve(spec.source))]
    assert spec.variant == "flux2-turbo"
    torch.testing.assert_close(weights[0], weights[1] + gains(lora)["x_embedder.weight"])


def test_what_does_not_fit_is_named_before_weights_are_read(folder: Path, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora)
    wide = {key: torch.cat((tensor, tensor), 1) if "lora_A" in key else tensor for key, tensor in tensors.items()}
    strange = {key.replace("transformer_blocks.0.", "transformer_blocks.9."): part for key, part in tensors.items()}
    for name, held, words in (
        ("wide-turbo", wide, "take 96 values and give 32"),
        ("strange-turbo", strange, "has no layer"),
    ):
        save_file(held, tmp_path / f"{name}.safetensors")
        spec = resolve(f"{folder}+{tmp_path / name}.safetensors")
        assert spec.variant == "flux2-turbo"
        first_look(spec)
        with pytest.raises(LoadError, match=f"the LoRA {name}.safetensors cannot be worked .*{words}"):
            check(spec)
    cut = tmp_path / "cut-turbo.safetensors"
    cut.write_bytes(lora.read_bytes()[:-8])
    with pytest.raises(LoadError, match="cut short"):
        first_look(replace(resolve(f"{folder}+{lora}"), adapter=str(cut)))


def test_values_that_are_no_numbers_are_refused_as_it_is_loaded(folder: Path, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora)
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, tmp_path / "turbo.safetensors")
    with pytest.raises(LoadError, match="values that are not numbers"):
        load(resolve(f"{folder}+{tmp_path}/turbo.safetensors"), CpuAccelerator())


def test_one_of_each_can_be_added(folder: Path, lora: Path, tmp_path: Path) -> None:
    other = shutil.copy(lora, tmp_path / "other.safetensors")
    with pytest.raises(UnknownModelError, match="has a LoRA that is worked in already"):
        resolve(f"{folder}+{lora}+{other}")


def test_a_lora_of_another_family_says_what_it_is(lora: Path) -> None:
    with pytest.raises(LoadError, match="a LoRA that was not merged"):
        first_look(resolve(f"flux-shapes+{lora}"))


def test_a_folder_of_that_name_draws_at_its_levels(folder: Path, tmp_path: Path) -> None:
    spec = resolve(str(copy_of(folder, tmp_path / "flux2-dev-turbo")))
    assert (spec.variant, spec.default_guidance) == ("flux2-turbo", 2.5)
    assert load(spec, CpuAccelerator()).levels == TURBO_SIGMAS
    assert load(resolve(str(folder)), CpuAccelerator()).levels == ()
