"""LoRAs of one family for a model of the other: told by names, and where both have the same by how layers grow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel

from models.adapter_files import AdapterError
from models.adapters.lineage import foreign_key
from models.adapters.reading import AdapterWeights, LowRank, read_adapter
from models.registry import REGISTRY
from pipelines.adapters.adapter import fit
from tests.pipelines.adapters.loras import BLOCKS, Parts, random_lora, save_diffusers, save_kohya

Save = Callable[[Parts, Path], Path]


@pytest.fixture(scope="module")
def flux1() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(Path(REGISTRY["flux-shapes"].source) / "transformer")


@pytest.fixture(scope="module")
def flux2() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel.from_pretrained(Path(REGISTRY["flux2-shapes"].source) / "transformer")


@pytest.mark.parametrize("among", [BLOCKS, BLOCKS[:1], BLOCKS[1:]])
@pytest.mark.parametrize("but", [".norm", "no layer"])
@pytest.mark.parametrize(
    "save", [save_diffusers, partial(save_kohya, alpha=1.0), partial(save_kohya, alpha=1.0, bfl_names=True)]
)
def test_a_lora_of_flux1_is_told_from_flux2s_in_every_layout(
    flux1: FluxTransformer2DModel, tmp_path: Path, save: Save, but: str, among: tuple[str, ...]
) -> None:
    file = save(random_lora(flux1, 2, 1, among=among, but=but), tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"it was made for FLUX\.1, not for FLUX\.2, by its key "):
        read_adapter(file, "flux2")
    read_adapter(file, "flux")


@pytest.mark.parametrize("among", [("",), BLOCKS[:1], BLOCKS[1:]])
def test_a_lora_of_flux2_is_told_from_flux1s(
    flux2: Flux2Transformer2DModel, tmp_path: Path, among: tuple[str, ...]
) -> None:
    file = save_diffusers(random_lora(flux2, 2, 1, among=among, but="no layer"), tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"it was made for FLUX\.2, not for FLUX\.1"):
        read_adapter(file, "flux")
    read_adapter(file, "flux2")


@pytest.mark.parametrize(("layer", "growth"), [("single_blocks.0.linear1", 9), ("double_blocks.0.txt_mlp.0", 6)])
def test_a_gated_mlp_is_flux2s(layer: str, growth: int) -> None:
    name = f"diffusion_model.{layer}"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(growth * 8, 2)}
    assert foreign_key(tensors, "flux") == (f"{name}.lora_B.weight", "flux2")
    assert foreign_key(tensors, "flux2") is None


def test_a_block_of_another_width_is_told_whose_it_is(flux2: Flux2Transformer2DModel) -> None:
    weights = AdapterWeights({"transformer_blocks.0.attn.to_q": LowRank(torch.ones(1, 6144), torch.ones(6144, 1))}, {})
    with pytest.raises(AdapterError, match=r"gives 128 \(6144 is the width of FLUX\.2 \[dev\]\)"):
        fit(weights, flux2, flux2, torch.device("cpu"), torch.float32)
