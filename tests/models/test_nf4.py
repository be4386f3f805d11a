"""Weights that bitsandbytes packed to 4 bits are unpacked to its own numbers, from a folder and from a single file."""

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
from models.nf4 import Nf4Weight, with_nf4
from models.packed import PackedLinear
from tests.models.single.conftest import narrow, narrow_folder
from tests.models.single.writers import bfl

__all__ = ["narrow", "narrow_folder"]
functional = pytest.importorskip("bitsandbytes.functional")


def packed(name: str, weight: Tensor, kind: str = "nf4", nested: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """What bitsandbytes stores of a matrix, and what it makes of that."""
    values, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
    beside = {f"{name}.{ending}": tensor for ending, tensor in state.as_dict(packed=True).items()}
    return {name: values} | beside, functional.dequantize_4bit(values, state)


def all_packed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices of the blocks packed, and the same tensors with what is left of them."""
    stored, plain = {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight"):
            own, plain[name] = packed(name, tensor.to(torch.bfloat16))
            stored |= own
        else:
            stored[name] = plain[name] = tensor.to(torch.bfloat16)
    return stored, plain


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_those_of_bitsandbytes(kind: str, nested: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    stored, wanted = packed("x.weight", torch.randn(96, 320, dtype=dtype), kind, nested)
    (weight,) = with_nf4(dict(stored), "x").values()
    assert isinstance(weight, Nf4Weight)
    assert torch.equal(weight.unpack(dtype), wanted)
    assert torch.equal(weight.rows(32, 64).unpack(dtype), wanted[32:64])


def same(ours: torch.nn.Module, plain: dict[str, Tensor]) -> None:
    for name, layer in ours.named_modules():
        if isinstance(layer, PackedLinear):
            assert torch.equal(layer.weight.unpack(torch.bfloat16), plain[f"{name}.weight"]), name


def test_a_folder_of_nf4_is_served_as_it_is_stored(narrow: FluxComponents, narrow_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nf4"
    narrow.pipeline().save_pretrained(folder)
    for part in ("transformer", "text_encoder_2"):
        config = json.loads((folder / part / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"
        }  # fmt: skip
        (folder / part / "config.json").write_text(json.dumps(config))
    stored, plain = all_packed(narrow.transformer.state_dict())
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file)
    (t5,) = (folder / "text_encoder_2").glob("*.safetensors")
    words = load_file(t5)
    matrix = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    own, wanted = packed(matrix, words.pop(matrix).to(torch.bfloat16))
    save_file(words | own, t5, {"format": "pt"})
    loaded = load(resolve(str(folder)), CpuAccelerator(), torch.bfloat16)
    same(loaded.transformer, plain)
    assert torch.equal(loaded.text_encoder_2.get_parameter(matrix), wanted)
    whole = load(resolve(str(narrow_folder)), CpuAccelerator(), torch.bfloat16)
    assert weight_bytes(loaded.transformer) < 0.4 * weight_bytes(whole.transformer)


def test_a_single_file_of_nf4_has_the_numbers_of_its_matrices(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    stored, plain = all_packed(bfl(narrow.transformer.state_dict()))
    file = tmp_path / "nf4.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in stored.items()}, file)
    loaded = load(resolve(f"{narrow_folder}+{file}"), CpuAccelerator(), torch.bfloat16).transformer
    query = plain["double_blocks.0.img_attn.qkv.weight"].chunk(3)[0]
    assert torch.equal(loaded.transformer_blocks[0].attn.to_q.weight.unpack(torch.bfloat16), query)
    last = plain["single_blocks.1.linear2.weight"]
    assert torch.equal(loaded.single_transformer_blocks[1].proj_out.weight.unpack(torch.bfloat16), last)


def test_a_damaged_description_is_one_sentence() -> None:
    stored, _ = packed("x.weight", torch.randn(64, 64))
    (state,) = [name for name in stored if "quant_state" in name]
    for broken in ({state: torch.zeros(3, dtype=torch.uint8)}, {"x.weight": torch.zeros(5, 1, dtype=torch.uint8)}):
        with pytest.raises(LoadError, match=r"x.weight is packed in 4 bits, but what belongs to it is damaged\.$"):
            with_nf4(stored | broken, "x")
