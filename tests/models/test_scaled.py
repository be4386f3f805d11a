"""Weights that bitsandbytes, quanto and torchao packed are unpacked to the numbers that those packages unpack.

Files of quanto and torchao lie in `packages/`, written by them (`packages/write.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.components import FluxComponents, weight_bytes
from models.errors import LoadError
from models.loading import load
from models.packed import PackedLinear, Stored
from models.scaled import ScaledWeight, with_scaled
from tests.models.single.conftest import narrow, narrow_folder

__all__ = ["narrow", "narrow_folder"]
PACKAGES = Path(__file__).parent / "packages"
WAYS = sorted(file.name.removesuffix(".plain.safetensors") for file in PACKAGES.glob("*.plain.safetensors"))


def read(name: str) -> dict[str, Stored]:
    return dict(load_file(PACKAGES / f"{name}.safetensors"))


@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_the_package_that_wrote_them(way: str) -> None:
    ours, meant = with_scaled(read(way), way), load_file(PACKAGES / f"{way}.plain.safetensors")
    assert len(meant) == 2
    for name, tensor in meant.items():
        weight = ours.pop(name)
        assert isinstance(weight, ScaledWeight)
        assert weight.shape == tensor.shape
        assert torch.equal(weight.unpack(torch.bfloat16), tensor), name
        if weight.values.dtype != torch.uint8:
            assert torch.equal(weight.rows(8, 24).unpack(torch.bfloat16), tensor[8:24])
    assert all(name.endswith((".bias", ".input_scale")) for name in ours)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_missing_beside_a_packed_matrix_is_one_sentence(way: str) -> None:
    stored = read(way)
    scales = [name for name in stored if name.endswith("_scale") and "put_" not in name]
    for name in scales:
        del stored[name]
    with pytest.raises(LoadError, match=r"^x: .*\.weight is packed, but what belongs to it is damaged\.$"):
        with_scaled(stored, "x")


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and SCB as bitsandbytes makes them (checked against it where it is installed)."""
    largest = weight.float().abs().amax(dim=1)
    return (weight.float() * (127 / largest)[:, None]).round().to(torch.int8), largest


def test_int8_of_bitsandbytes_has_its_numbers() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(2)
    weight = torch.randn(48, 96, dtype=torch.float16)
    values, largest, _ = functional.int8_vectorwise_quant(weight)
    assert torch.equal(int8(weight)[0], values)
    assert torch.equal(int8(weight)[1], largest)
    (ours,) = with_scaled({"x.weight": values, "x.SCB": largest}, "x").values()
    assert isinstance(ours, ScaledWeight)
    assert torch.allclose(ours.unpack(torch.float32), functional.int8_vectorwise_dequant(values, largest), rtol=2**-22)


def test_a_folder_of_int8_is_served_as_it_is_stored(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "int8"
    narrow.pipeline().save_pretrained(folder)
    meant = {}
    for part, module in (("transformer", narrow.transformer), ("text_encoder_2", narrow.text_encoder_2)):
        config = json.loads((folder / part / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (folder / part / "config.json").write_text(json.dumps(config))
        (file,) = (folder / part).glob("*.safetensors")
        stored = {}
        for name, tensor in module.state_dict().items():
            if tensor.ndim == 2 and "block" in name and "relative" not in name and name.endswith(".weight"):
                values, largest = int8(tensor)
                layer = name.removesuffix(".weight")
                stored |= {name: values, f"{layer}.SCB": largest, f"{layer}.weight_format": torch.tensor(0).byte()}
                meant[name] = values * (largest / 127)[:, None]
            elif name != "encoder.embed_tokens.weight":
                stored[name] = tensor.contiguous()
        save_file(stored, file, {"format": "pt"})
    loaded = load(resolve(str(folder)), CpuAccelerator())
    matrix = next(name for name in meant if "wi_0" in name)
    assert torch.equal(loaded.text_encoder_2.get_parameter(matrix), meant[matrix])
    packed = {n: layer for n, layer in loaded.transformer.named_modules() if isinstance(layer, PackedLinear)}
    assert len(packed) > 20
    for name, layer in packed.items():
        assert torch.equal(layer.weight.unpack(torch.float32), meant[f"{name}.weight"]), name
    whole = load(resolve(str(narrow_folder)), CpuAccelerator())
    assert weight_bytes(loaded.transformer) < 0.4 * weight_bytes(whole.transformer)
