"""Checkpoints as single files draw what their folder draws."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from numpy.typing import NDArray

from models.accelerator import CpuAccelerator
from models.arguments import UnknownModelError, resolve
from models.components import FluxComponents, weight_bytes
from models.errors import LoadError
from models.fit import need_together
from models.loading import load
from models.memory import Preset
from models.packed import PackedLinear
from models.registry import ModelSpec
from models.single.gguf import packed
from pipelines.adapters.adapter import targets
from pipelines.families.flux1.runner import FluxRunner
from tests.models.single.writers import (
    all_in_one,
    bfl,
    ldm_vae,
    prefixed,
    random_blocks,
    scaled_float8,
    write,
    write_gguf,
)
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit

LEVELS = 4


def drawn(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> NDArray[np.uint8]:
    return drawn_by(load(spec, CpuAccelerator(), dtype))


def drawn_by(components: FluxComponents) -> NDArray[np.uint8]:
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    submit(engine, "a", make_params(width=64, height=48, max_sequence_length=16))
    (picture,) = pictures(drain(engine), "a")
    return picture


@pytest.fixture(scope="module")
def expected(narrow_folder: Path) -> NDArray[np.uint8]:
    picture = drawn(resolve(str(narrow_folder)))
    assert picture.std() > 1
    return picture


@pytest.fixture(scope="module")
def comfyui(narrow: FluxComponents, narrow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folders with the files that it asks for, and its own program's tokenizers."""
    root = tmp_path_factory.mktemp("ComfyUI")
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in narrow.text_encoder.state_dict().items()}
    write(root / "models/unet/some-name.safetensors", bfl(narrow.transformer.state_dict()))
    write(root / "models/vae/ae.safetensors", ldm_vae(narrow.vae.state_dict(), LEVELS))
    write(root / "models/clip/t5xxl.safetensors", narrow.text_encoder_2.state_dict())
    write(root / "models/clip/t5xxl_fp8.safetensors", narrow.text_encoder_2.state_dict(), torch.float8_e4m3fn)
    write(root / "models/text_encoders/clip_l.safetensors", clip)
    write(root / "models/checkpoints/everything.safetensors", all_in_one(narrow))
    (root / "models/vae/broken.safetensors").write_bytes(b"no weights")
    for name, place in (("tokenizer", "comfy/sd1_tokenizer"), ("tokenizer_2", "comfy/text_encoders/t5_tokenizer")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(narrow_folder / name)
    return root


def test_a_transformer_finds_its_companions_in_comfyuis_folders(comfyui: Path, expected: NDArray[np.uint8]) -> None:
    spec = resolve(str(comfyui / "models/unet/some-name.safetensors"))
    assert (spec.name, spec.variant) == ("some-name", "dev")
    assert np.array_equal(drawn(spec), expected)


def test_a_file_is_found_by_its_name(comfyui: Path, expected: NDArray[np.uint8], tmp_path: Path) -> None:
    spec = resolve("mine=some-name.safetensors", [comfyui / "models"])
    assert (spec.name, spec.source) == ("mine", str(comfyui / "models/unet/some-name.safetensors"))
    with pytest.raises(UnknownModelError, match="there is no some-name"):
        resolve("some-name.safetensors", [tmp_path])
    alone = tmp_path / "alone.safetensors"
    alone.symlink_to(comfyui / "models/unet/some-name.safetensors")
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(alone.read_bytes())
    assert np.array_equal(drawn(resolve(str(copied), [comfyui])), expected)


def test_comfyuis_all_in_one_brings_all_but_tokenizers(comfyui: Path, expected: NDArray[np.uint8]) -> None:
    assert np.array_equal(drawn(resolve(str(comfyui / "models/checkpoints/everything.safetensors"))), expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_folder_takes_the_transformer_of_a_file(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path, expected: NDArray[np.uint8], prefix: str
) -> None:
    file = write(tmp_path / "mine.safetensors", prefixed(prefix, bfl(narrow.transformer.state_dict())))
    spec = resolve(f"{narrow_folder}+{file}")
    assert spec.name == "narrow-flux+mine"
    assert np.array_equal(drawn(spec), expected)
    alike = write(tmp_path / "alike.safetensors", narrow.transformer.state_dict())
    assert np.array_equal(drawn(resolve(f"named={narrow_folder}+{alike}")), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_each_dtype_draws_what_its_values_mean(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = narrow.transformer.state_dict()
    rounded = {name: tensor.to(dtype).float() if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    plain = write(tmp_path / "plain.safetensors", bfl(rounded))
    stored = write(tmp_path / "stored.safetensors", bfl(state), dtype)
    assert np.array_equal(drawn(resolve(f"{narrow_folder}+{stored}")), drawn(resolve(f"{narrow_folder}+{plain}")))


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_float8_is_read_with_its_scales(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path, suffix: str, expected: NDArray[np.uint8]
) -> None:
    file = write(tmp_path / "scaled.safetensors", scaled_float8(bfl(narrow.transformer.state_dict()), suffix))
    loaded = load(resolve(f"{narrow_folder}+{file}"), CpuAccelerator())
    block = loaded.transformer.single_transformer_blocks[1]
    assert isinstance(block.proj_mlp, PackedLinear)
    before = narrow.transformer.single_transformer_blocks[1].proj_mlp.weight
    assert torch.allclose(block.proj_mlp.weight.unpack(torch.float32), before, atol=float(before.abs().max()) / 16)
    assert np.abs(drawn_by(loaded).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_gguf_draws_what_its_blocks_mean(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path, kind: str
) -> None:
    wanted = gguf.GGMLQuantizationType[kind]
    state = bfl(narrow.transformer.state_dict())
    file = write_gguf(tmp_path / "mine.gguf", state, wanted)
    parsed = load_gguf_checkpoint(file)
    meant = {name: dequantize_gguf_tensor(tensor).float().reshape(state[name].shape) for name, tensor in parsed.items()}
    plain = write(tmp_path / "plain.safetensors", meant)
    ours = load(resolve(f"{narrow_folder}+{file}"), CpuAccelerator())
    assert (kind == "BF16") != isinstance(ours.transformer.transformer_blocks[0].attn.to_q, PackedLinear)
    assert np.array_equal(drawn_by(ours), drawn(resolve(f"{narrow_folder}+{plain}")))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_blocks_are_unpacked_as_gguf_does_and_by_rows(kind: str) -> None:
    wanted = gguf.GGMLQuantizationType[kind]
    blocks = random_blocks(wanted, (6, 512), seed=1)
    weight = packed("x", torch.from_numpy(blocks), wanted, (6, 512))
    meant = torch.from_numpy(gguf.quants.dequantize(blocks, wanted))
    assert weight.shape == (6, 512)
    assert torch.allclose(weight.unpack(torch.float32), meant, rtol=2**-9, atol=float(meant.abs().max()) * 2**-9)
    assert torch.equal(weight.rows(2, 5).unpack(torch.float32), weight.unpack(torch.float32)[2:5])


def test_what_a_file_is_is_read_from_its_shapes(narrow: FluxComponents, tmp_path: Path) -> None:
    state = bfl(narrow.transformer.state_dict())
    for name, inputs, variant in (
        ("a", 384, "fill"),
        ("b", 128, "canny"),
        ("my-depth", 128, "depth"),
        ("k-kontext", 64, "kontext"),
    ):
        wide = state | {"img_in.weight": torch.zeros(256, inputs)}
        assert resolve(str(write(tmp_path / f"{name}.safetensors", wide))).variant == variant
    unguided = {name: tensor for name, tensor in state.items() if not name.startswith("guidance_in")}
    spec = resolve(str(write(tmp_path / "flux-dev.safetensors", unguided)))
    assert (spec.variant, spec.default_steps, spec.max_sequence_length) == ("schnell", 4, 256)


REFUSED = {
    "FLUX.2": (
        {"double_stream_modulation_img.lin.weight": (4, 4)},
        "a part of FLUX.2's transformer, not FLUX.1's transformer",
    ),
    "Chroma": ({"distilled_guidance_layer.in_proj.weight": (4, 4)}, "Chroma"),
    "Stable Diffusion": ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "Stable Diffusion 1 or 2, which"),
    "SDXL by diffusers": ({"add_embedding.linear_1.weight": (4, 4)}, "SDXL, which is served whole"),
    "a LoRA": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 4)}, "a LoRA that was not merged"),
    "a VAE": ({"decoder.up.0.block.0.conv1.weight": (4, 4)}, "a VAE in the layout of latent diffusion, not"),
    "something else": ({"a": (4, 4)}, "no model that is known here"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, kind: str) -> None:
    shapes, words = REFUSED[kind]
    file = write(tmp_path / "flux1-dev.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(LoadError, match=words) as caught:
        load(resolve(str(file)), CpuAccelerator())
    assert "\n" not in str(caught.value)


def test_what_is_missing_beside_a_file_is_named(narrow: FluxComponents, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1-dev.safetensors", bfl(narrow.transformer.state_dict()))
    with pytest.raises(LoadError, match=r"needs CLIP \(clip_l.*; T5 .*; FLUX.1's VAE [^;]*;") as caught:
        load(resolve(str(file)), CpuAccelerator())
    assert "--model FLUX.1-dev --transformer flux1-dev.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("x.ckpt", b"PK\x03\x04", "a pickle, which is never loaded"),
        ("x.gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, "damaged or no GGUF file"),
        ("x.gguf", b"<html>", "damaged or no GGUF file"),
        ("x.safetensors", b"<html>please log in", "is not a safetensors file"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str, raw: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(LoadError, match=words) as caught:
        load(resolve(str(tmp_path / name)), CpuAccelerator())
    assert "\n" not in str(caught.value)


def test_a_transformer_with_a_tensor_too_few_is_refused(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    state = bfl(narrow.transformer.state_dict())
    del state["double_blocks.1.img_attn.proj.bias"]
    file = write(tmp_path / "short.safetensors", state)
    with pytest.raises(LoadError, match=r"1 that its config.* missing \(transformer_blocks.1.attn.to_out.0"):
        load(resolve(f"{narrow_folder}+{file}"), CpuAccelerator())


def test_a_lora_finds_its_layers_among_packed_ones(narrow: FluxComponents, narrow_folder: Path, tmp_path: Path) -> None:
    stored = write(tmp_path / "stored.safetensors", bfl(narrow.transformer.state_dict()), torch.float8_e4m3fn)
    packed_layers = targets(load(resolve(f"{narrow_folder}+{stored}"), CpuAccelerator()).transformer)
    assert packed_layers == targets(narrow.transformer)


def test_packed_weights_are_counted_as_they_are_stored(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    state = bfl(narrow.transformer.state_dict())
    wide = write(tmp_path / "wide.safetensors", state, torch.bfloat16)
    small = write(tmp_path / "small.safetensors", state, torch.float8_e4m3fn)
    preset, specs = Preset("none", "none"), [resolve(f"{narrow_folder}+{file}") for file in (wide, small)]
    needs = [need_together([spec], preset, 64, 64).weights for spec in specs]
    matrices = sum(tensor.numel() for tensor in state.values() if tensor.ndim >= 2)
    assert needs[0] - needs[1] == matrices
    loaded = load(resolve(f"{narrow_folder}+{small}"), CpuAccelerator(), torch.bfloat16)
    plain = load(resolve(f"{narrow_folder}+{wide}"), CpuAccelerator(), torch.bfloat16)
    held = weight_bytes(plain.transformer) - weight_bytes(loaded.transformer)
    assert 0.95 * matrices < held <= matrices


def test_packed_weights_are_not_packed_again(narrow: FluxComponents, narrow_folder: Path, tmp_path: Path) -> None:
    stored = write(tmp_path / "stored.safetensors", bfl(narrow.transformer.state_dict()), torch.float8_e4m3fn)
    with pytest.raises(LoadError, match="packed already"):
        load(resolve(f"{narrow_folder}+{stored}"), CpuAccelerator(), quantization="fp8")


def test_pictures_of_one_step_change_each_other_no_more_than_with_plain_weights(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "mine.gguf", bfl(narrow.transformer.state_dict()), gguf.GGMLQuantizationType.Q8_0)
    runner = FluxRunner(load(resolve(f"{narrow_folder}+{file}"), CpuAccelerator()), CpuAccelerator())
    alone, together = make_engine(runner), make_engine(runner)
    submit(alone, "a", make_params(width=64, height=48, max_sequence_length=16))
    for job, seed in (("a", 7), ("b", 8), ("c", 9)):
        submit(together, job, make_params(width=64, height=48, max_sequence_length=16, seed=seed))
    difference = pictures(drain(alone), "a")[0].astype(int) - pictures(drain(together), "a")[0]
    assert np.abs(difference).max() <= 1
