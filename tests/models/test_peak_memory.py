"""What loading takes at its fullest moment, measured in a process of its own, by the system's own count."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from models.components import FluxComponents
from tests.models.single.writers import bfl, scaled_float8, write, write_gguf
from tests.models.test_scaled import int8 as bitsandbytes_int8

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counted by Linux"),
    pytest.mark.timeout(600),  # a process that starts, loads and ends, beside whatever else the machine does
]
State = dict[str, Tensor]


def peak_of(*arguments: str) -> int:
    command = [sys.executable, "-m", "tests.models.peak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def save(components: FluxComponents, folder: Path, heads: int = 9, singles: int = 6) -> Path:
    """A checkpoint in bfloat16, most of it transformer: 0.4 GB with 9 heads and 6 single blocks."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=singles,
            attention_head_dim=128,
            num_attention_heads=heads,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    replace(components, transformer=transformer).pipeline().save_pretrained(folder)
    write(folder.parent / f"{folder.name}.safetensors", bfl(transformer.state_dict()))
    return folder


@pytest.fixture(scope="module")
def large(tiny: FluxComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny, tmp_path_factory.mktemp("large") / "large")


def float8(file: Path, state: State) -> Path:
    return write(file.with_suffix(".safetensors"), state, torch.float8_e4m3fn)


def scaled(file: Path, state: State) -> Path:
    return write(file.with_suffix(".safetensors"), scaled_float8(state, "scale_weight"))


def q8_0(file: Path, state: State) -> Path:
    return write_gguf(file.with_suffix(".gguf"), state, gguf.GGMLQuantizationType.Q8_0)


def q4_0(file: Path, state: State) -> Path:
    return write_gguf(file.with_suffix(".gguf"), state, gguf.GGMLQuantizationType.Q4_0)


def int8(file: Path, state: State) -> Path:
    """As bitsandbytes stores it."""
    packed: State = {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight"):
            packed[name], packed[name.replace(".weight", ".SCB")] = bitsandbytes_int8(tensor)
        else:
            packed[name] = tensor
    return write(file, packed)


def float16(file: Path, state: State) -> Path:
    return write(file, state, torch.float16)


def nf4(file: Path, state: State) -> Path:
    pytest.importorskip("bitsandbytes")
    from tests.models.test_nf4 import all_packed

    save_file({name: tensor.contiguous() for name, tensor in all_packed(state)[0].items()}, file)
    return file


@pytest.mark.parametrize("form", [pytest.param("folder", marks=pytest.mark.slow), "file"])
def test_loading_takes_at_most_a_fifth_more_than_the_weights(large: Path, form: str) -> None:
    stored = (large / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    argument = str(large) if form == "folder" else f"{large}+{large.parent / 'large.safetensors'}"
    assert stored > 350e6
    assert peak_of(argument) < 1.2 * stored


@pytest.mark.slow
@pytest.mark.parametrize("pack", [float16, float8, scaled, int8, q8_0, q4_0, nf4])
def test_no_way_of_storing_takes_more_than_a_fifth_more_than_its_file(
    tiny: FluxComponents, large: Path, tmp_path: Path, pack: Callable[[Path, State], Path]
) -> None:
    from safetensors.torch import load_file

    # What 4 bits leave of the other one is so small that the process's own 13 MB would count.
    folder = save(tiny, tmp_path / "larger", 16, 8) if pack is nf4 else large
    file = pack(tmp_path / "packed.safetensors", load_file(folder.parent / f"{folder.name}.safetensors"))
    peak, stored = peak_of(f"{folder}+{file}"), file.stat().st_size
    print(f"{pack.__name__}: file {stored / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {peak / stored:.2f}")
    assert peak < 1.2 * stored


@pytest.mark.parametrize(
    ("heads", "singles"), [(6, 6), pytest.param(18, 8, marks=pytest.mark.slow)], ids=["0.2 GB", "2 GB"]
)
def test_memory_gb_bounds_what_the_process_takes(
    tiny: FluxComponents, tmp_path: Path, heads: int, singles: int
) -> None:
    one, two = (save(tiny, tmp_path / name, heads, singles) for name in ("one", "two"))
    stored = (one / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    bound = 1.2 * stored
    peak = peak_of("--memory-gb", str(bound / 1e9), str(one), str(two))
    print(f"two of {stored / 1e9:.2f} GB, --memory-gb {bound / 1e9:.2f}: peak {peak / 1e9:.2f} GB")
    assert peak < 1.2 * bound, "one at a time: never the old one and the new one"
