"""Each way of storing weights, made from the embedded model, draws what its numbers mean, nearly what the folder draws.

`python -m pytest tests/models/test_storage_kinds.py -s` prints the distances that docs/models.md shows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.registry import REGISTRY
from pipelines.families.flux1.runner import FluxRunner
from tests.models.single.writers import (
    all_in_one,
    bfl,
    prefixed,
    quanto_int8,
    scaled_float8,
    torchao_int8,
    write,
    write_gguf,
)
from tests.models.test_scaled import int8
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit

SHAPES = Path(REGISTRY["flux-shapes"].source)
TRANSFORMER = Path("transformer/diffusion_pytorch_model.safetensors")
State = dict[str, Tensor]
Picture = NDArray[np.uint8]
Made = tuple[str, State | None]
"""The argument of --model, and the transformer's plain tensors that it means if they are not the folder's."""


def draw(argument: str) -> Picture:
    components = load(resolve(argument), CpuAccelerator())
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    prompt = "a red circle on a blue background"
    submit(engine, "a", make_params(prompt=prompt, width=192, height=128, max_sequence_length=32))
    (picture,) = pictures(drain(engine), "a")
    return picture


def state() -> State:
    return load_file(SHAPES / TRANSFORMER)


def is_packed(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight")


def in_folder(folder: Path, tensors: State, part: str = "transformer", packed: dict[str, object] | None = None) -> str:
    """The embedded model's folder with these tensors, and what its config.json says of them."""
    shutil.copytree(SHAPES, folder)
    (file,) = (folder / part).glob("*.safetensors")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    if packed is not None:
        config = json.loads((folder / part / "config.json").read_bytes())
        (folder / part / "config.json").write_text(json.dumps(config | {"quantization_config": packed}))
    return str(folder)


def single(change: Callable[[State], State], root: Path) -> Made:
    return f"flux-shapes+{write(root / 'file.safetensors', change(state()))}", None


def everything(root: Path) -> Made:
    components = load(REGISTRY["flux-shapes"], CpuAccelerator())
    return f"flux-shapes+{write(root / 'all.safetensors', all_in_one(components))}", None


def shards(root: Path) -> Made:
    tensors, folder = state(), Path(in_folder(root / "folder", {}))
    (folder / TRANSFORMER).unlink()
    names = sorted(tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / "transformer" / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "transformer" / f"{TRANSFORMER.name}.index.json").write_text(json.dumps(index))
    return str(folder), None


def cast(dtype: torch.dtype, root: Path) -> Made:
    tensors = bfl(state())
    meant = {name: tensor.to(dtype).float() if tensor.ndim >= 2 else tensor for name, tensor in tensors.items()}
    return f"flux-shapes+{write(root / 'cast.safetensors', tensors, dtype)}", meant


def cast_folder(dtype: torch.dtype, root: Path) -> Made:
    tensors = {name: tensor.to(dtype) for name, tensor in state().items()}
    return in_folder(root / "folder", tensors), bfl({name: tensor.float() for name, tensor in tensors.items()})


def scaled(suffix: str, root: Path) -> Made:
    tensors = scaled_float8(bfl(state()), suffix)
    scales = {name.removesuffix(suffix) + "weight": name for name in tensors if name.endswith("." + suffix)}
    meant = {
        name: tensor.float() * tensors[scales[name]] if name in scales else tensor
        for name, tensor in tensors.items()
        if not name.endswith(suffix) and name != "scaled_fp8"
    }
    return f"flux-shapes+{write(root / 'scaled.safetensors', tensors)}", meant


def in_gguf(kind: str, root: Path) -> Made:
    tensors = bfl(state())
    file = write_gguf(root / "file.gguf", tensors, gguf.GGMLQuantizationType[kind])
    meant = {name: dequantize_gguf_tensor(tensor).float() for name, tensor in load_gguf_checkpoint(file).items()}
    return f"flux-shapes+{file}", {name: meant[name].reshape(tensor.shape) for name, tensor in tensors.items()}


def four_bits(kind: str, root: Path) -> Made:
    pytest.importorskip("bitsandbytes")
    from tests.models.test_nf4 import packed

    stored, plain = {}, {}
    for name, tensor in state().items():
        if is_packed(name, tensor):
            own, plain[name] = packed(name, tensor.to(torch.bfloat16), kind)
            stored |= own
        else:
            stored[name] = plain[name] = tensor
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return in_folder(root / "folder", stored, packed=method), bfl(plain)


def eight_bits(root: Path) -> Made:
    stored, plain = {}, {}
    for name, tensor in state().items():
        if is_packed(name, tensor):
            values, largest = int8(tensor)
            stored |= {name: values, name.replace(".weight", ".SCB"): largest}
            plain[name] = values * (largest / 127)[:, None]
        else:
            stored[name] = plain[name] = tensor
    method: dict[str, object] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return in_folder(root / "folder", stored, packed=method), bfl(plain)


def by_package(pack: Callable[[State], tuple[State, State]], method: dict[str, object], root: Path) -> Made:
    stored, plain = pack(state())
    return in_folder(root / "folder", stored, packed=method), bfl(plain)


@dataclass(frozen=True)
class Kind:
    """Args: levels: the most by which a value of the picture may differ from the folder's on average, of 255."""

    make: Callable[[Path], Made]
    levels: float = 0.0


_TORCHAO: dict[str, object] = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
}
KINDS = {
    "folder, shards": Kind(shards),
    "folder, float32": Kind(partial(cast_folder, torch.float32)),
    "folder, float16": Kind(partial(cast_folder, torch.float16), 0.1),
    "folder, float8 e4m3": Kind(partial(cast_folder, torch.float8_e4m3fn), 6),
    "Black Forest Labs' file": Kind(partial(single, bfl)),
    "its names with a prefix": Kind(partial(single, lambda t: prefixed("model.diffusion_model.", bfl(t)))),
    "diffusers' names in a file": Kind(partial(single, dict)),
    "all-in-one": Kind(everything),
    "file, float8 e4m3": Kind(partial(cast, torch.float8_e4m3fn), 4),
    "file, float8 e5m2": Kind(partial(cast, torch.float8_e5m2), 4),
    "file, float8, scale_weight": Kind(partial(scaled, "scale_weight"), 3),
    "file, float8, weight_scale": Kind(partial(scaled, "weight_scale"), 3),
    **{
        f"GGUF {kind}": Kind(partial(in_gguf, kind), levels)
        for kind, levels in (
            ("BF16", 0.1), ("F16", 0.1), ("Q8_0", 0.5), ("Q6_K", 0.5), ("Q5_1", 3), ("Q5_0", 4), ("Q4_K", 1.5),
            ("Q4_1", 6), ("Q4_0", 7),
        )
    },
    "NF4": Kind(partial(four_bits, "nf4"), 7),
    "FP4": Kind(partial(four_bits, "fp4"), 16),
    "int8 of bitsandbytes": Kind(eight_bits, 0.5),
    "int8 of quanto": Kind(partial(by_package, quanto_int8, {"quant_method": "quanto", "weights_dtype": "int8"}), 0.5),
    "int8 of torchao": Kind(partial(by_package, torchao_int8, _TORCHAO), 0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> Picture:
    picture = draw("flux-shapes")
    assert picture.std() > 20
    return picture


@pytest.mark.parametrize("name", KINDS)
def test_each_draws_what_its_numbers_mean_and_nearly_what_the_folder_draws(
    expected: Picture, tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    argument, meant = kind.make(tmp_path)
    drawn = draw(argument)
    if meant is not None:
        plain = write(tmp_path / "plain.safetensors", {key: tensor.float() for key, tensor in meant.items()})
        assert np.array_equal(drawn, draw(f"flux-shapes+{plain}"))
    distance = float(np.abs(drawn.astype(int) - expected).mean())
    print(f"{name}: {distance:.2f}")
    assert distance <= kind.levels
