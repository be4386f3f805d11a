"""FLUX.2 [klein] as single files draws what its folder draws."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.errors import LoadError
from models.examine import check
from models.first_look import first_look
from models.loading import load
from models.packed import is_packed
from models.registry import TINY_KLEIN
from models.single.layout import diffusers_transformer
from pipelines.engine.engine import Engine
from pipelines.families.flux2.runner import Flux2Runner
from tests.models.flux2.folders import save_klein
from tests.models.single.writers import ldm_vae, prefixed, scaled_float8, write, write_gguf
from tests.pipelines.driving import drain, make_params, pictures, submit

State = Mapping[str, Tensor]
_NAMES = (
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("stream_modulation.linear", "stream_modulation.lin"),
    ("stream_modulation_img.linear", "stream_modulation_img.lin"),
    ("stream_modulation_txt.linear", "stream_modulation_txt.lin"),
    ("context_embedder", "txt_in"), ("x_embedder", "img_in"), ("single_transformer_blocks", "single_blocks"),
    ("transformer_blocks", "double_blocks"), ("attn.to_qkv_mlp_proj", "linear1"), ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"), ("ff.linear_in", "img_mlp.0"), ("ff.linear_out", "img_mlp.2"),
    ("ff_context.linear_in", "txt_mlp.0"), ("ff_context.linear_out", "txt_mlp.2"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
)  # fmt: skip


def bfl(state: State) -> dict[str, Tensor]:
    """A Flux2Transformer2DModel's tensors in Black Forest Labs' layout."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = "final_layer.linear.weight" if name == "proj_out.weight" else name
        for theirs, ours in _NAMES:
            new = new.replace(theirs, ours)
        norms = "norm" if new.startswith("single") else "img_attn.norm"
        for short, long in (("q", "query"), ("k", "key")):
            new = new.replace(f"attn.norm_{short}.weight", f"{norms}.{long}_norm.scale")
        new = re.sub(r"^(single_blocks\.\d+)\.attn\.to_out\.", r"\1.linear2.", new)
        if name == "norm_out.linear.weight":
            out["final_layer.adaLN_modulation.1.weight"] = torch.cat(tensor.chunk(2)[::-1])
        elif not re.search(r"to_[qkv]\.|add_[qkv]_proj", new):
            out[new] = tensor
    for number in {name.split(".")[1] for name in state if name.startswith("transformer_blocks")}:
        attention = f"transformer_blocks.{number}.attn."
        for stream, parts in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
            joined = torch.cat([state[f"{attention}{part}.weight"] for part in parts])
            out[f"double_blocks.{number}.{stream}_attn.qkv.weight"] = joined
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what no shape tells as published: Qwen3's rotation, and groups of 32 channels in the VAE."""
    folder = save_klein(tmp_path_factory.mktemp("kleins") / "my-klein")
    config = folder / "text_encoder" / "config.json"
    told = json.loads(config.read_bytes())
    told["rope_parameters"]["rope_theta"] = 1e6
    config.write_text(json.dumps(told))
    torch.manual_seed(5)
    vae = AutoencoderKLFlux2(block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4)
    vae.bn.running_mean.normal_(0.0, 0.5)
    vae.bn.running_var.uniform_(0.3, 2.0)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def drawn(argument: str, folders: tuple[Path, ...] = ()) -> NDArray[np.uint8]:
    spec = replace(resolve(argument, folders), max_sequence_length=24)
    runner = Flux2Runner(load(spec, CpuAccelerator()), CpuAccelerator())
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", make_params(model=TINY_KLEIN.name, guidance_scale=1.0, width=64, height=48))
    (picture,) = pictures(drain(engine), "a")
    return picture


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.uint8]:
    picture = drawn(str(folder))
    assert picture.std() > 1
    return picture


def test_names_become_those_of_diffusers_converter(state: dict[str, Tensor]) -> None:
    written = bfl(state)
    ours, theirs = (
        diffusers_transformer(written, "flux2"),
        convert_flux2_transformer_checkpoint_to_diffusers(dict(written)),
    )
    assert ours.keys() == theirs.keys() == state.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name  # type: ignore[arg-type]
        assert torch.equal(tensor, state[name]), name  # type: ignore[arg-type]


def test_a_folder_takes_the_transformer_of_a_file(
    folder: Path, state: dict[str, Tensor], tmp_path: Path, expected: NDArray[np.uint8]
) -> None:
    forms = {"bfl": bfl(state), "comfy": prefixed("model.diffusion_model.", bfl(state)), "diffusers": state}
    for name, tensors in forms.items():
        file = write(tmp_path / f"{name}.safetensors", tensors)
        assert np.array_equal(drawn(f"{folder}+{file}"), expected), name


def test_a_packed_transformer_draws_what_its_numbers_mean(
    folder: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    scaled = scaled_float8(bfl(state), "weight_scale")
    meant = {
        name: tensor.float() * scaled[name.replace(".weight", ".weight_scale")]
        if name.replace(".weight", ".weight_scale") in scaled
        else tensor
        for name, tensor in scaled.items()
        if not name.endswith("weight_scale")
    }
    stored, plain = (write(tmp_path / f"{n}.safetensors", t) for n, t in (("stored", scaled), ("plain", meant)))
    assert is_packed(load(resolve(f"{folder}+{stored}"), CpuAccelerator()).transformer)
    assert np.array_equal(drawn(f"{folder}+{stored}"), drawn(f"{folder}+{plain}"))
    blocks = write_gguf(tmp_path / "x.gguf", bfl(state), gguf.GGMLQuantizationType.Q8_0)
    assert np.abs(drawn(f"{folder}+{blocks}").astype(int) - drawn(str(folder))).mean() < 8


def comfyui(folder: Path, state: State, root: Path) -> Path:
    """ComfyUI's folders with its three files, FLUX.1's VAE beside them, and Qwen3's tokenizer."""
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    own = {n: t for n, t in ldm_vae(vae, 4).items() if "quant_conv" not in n}
    for half, layer in (("encoder", "quant_conv"), ("decoder", "post_quant_conv")):
        own |= {f"{half}.{name}": tensor for name, tensor in vae.items() if name.startswith(f"{layer}.")}
    write(root / "vae" / "flux2-vae.safetensors", own)
    write(root / "vae" / "ae.safetensors", {n: t for n, t in own.items() if not n.startswith("bn.")})
    write(root / "text_encoders" / "qwen_3.safetensors", load_file(folder / "text_encoder" / "model.safetensors"))
    shutil.copytree(folder / "tokenizer", root / "tokenizer")
    return write(root / "diffusion_models" / "flux-2-klein.safetensors", bfl(state))


def test_comfyuis_files_are_a_whole_checkpoint(
    folder: Path, state: dict[str, Tensor], tmp_path: Path, expected: NDArray[np.uint8]
) -> None:
    file = comfyui(folder, state, tmp_path)
    spec = resolve(str(file))
    assert (spec.family, spec.variant, spec.default_steps) == ("flux2", "klein-4b", 4)
    first_look(spec)
    check(spec)
    assert np.array_equal(drawn(str(file)), expected)
    base = file.rename(file.with_name("flux-2-klein-base.safetensors"))
    assert (resolve(str(base)).variant, resolve(str(base)).default_steps) == ("klein-base-4b", 50)


def test_an_all_in_one_needs_the_tokenizer_alone(
    folder: Path, state: dict[str, Tensor], tmp_path: Path, expected: NDArray[np.uint8]
) -> None:
    comfyui(folder, state, tmp_path / "comfy")
    names = ("vae/flux2-vae.safetensors", "text_encoders/qwen_3.safetensors")
    vae, text = (load_file(tmp_path / "comfy" / name) for name in names)
    tensors = {
        **prefixed("model.diffusion_model.", bfl(state)),
        **prefixed("vae.", vae),
        **prefixed("text_encoders.qwen3_4b.transformer.", text),
    }
    file = write(tmp_path / "alone" / "klein.safetensors", tensors)
    with pytest.raises(LoadError, match="needs Qwen3's tokenizer"):
        first_look(resolve(str(file)))
    shutil.copytree(folder / "tokenizer", file.parent / "tokenizer")
    assert np.array_equal(drawn(str(file)), expected)


def test_what_is_missing_or_of_another_family_is_named(folder: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path / "klein.safetensors", bfl(state))
    with pytest.raises(LoadError, match=r"needs Qwen3 .*; FLUX.2's VAE .*; Qwen3's tokenizer .* FLUX.2-klein-4B --tr"):
        first_look(resolve(str(file)))
    with pytest.raises(LoadError, match=r"holds FLUX.2's transformer, not FLUX.1's transformer"):
        first_look(resolve(f"flux-shapes+{file}"))
    flux1 = write(tmp_path / "flux1.safetensors", {
        "double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4), "vector_in.in_layer.weight": torch.zeros(4, 4),
    })  # fmt: skip
    with pytest.raises(LoadError, match=r"holds FLUX.1's transformer, not FLUX.2's transformer"):
        first_look(resolve(f"{folder}+{flux1}"))
    dev = write(tmp_path / "dev.safetensors", bfl(state) | {"guidance_in.in_layer.weight": torch.zeros(4, 4)})
    with pytest.raises(LoadError, match=r"holds FLUX.2 \[dev\]'s transformer alone; .* FLUX.2-dev --transformer dev"):
        first_look(resolve(str(dev)))
    with pytest.raises(LoadError, match=r"missing|another shape"):
        check(resolve(f"{folder}+{dev}"))


def test_that_references_pass_once_is_told_by_the_name(folder: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    for name, passes in (("flux-2-klein-9b-kv-fp8", True), ("my_kvm", False), ("klein", False)):
        file = write(tmp_path / f"{name}.safetensors", bfl(state))
        loaded = load(resolve(f"{folder}+{file}"), CpuAccelerator())
        assert (loaded.passes_references_once, loaded.is_distilled) == (passes, True), name
    file = comfyui(folder, state, tmp_path / "comfy")
    named = replace(resolve(str(file)), name="FLUX.2-klein-9B-KV")
    assert load(named, CpuAccelerator()).passes_references_once
    assert not load(resolve(str(file)), CpuAccelerator()).passes_references_once


def test_the_size_is_told_by_shapes(state: dict[str, Tensor], tmp_path: Path) -> None:
    wide = write(tmp_path / "any.safetensors", bfl(state) | {"img_in.weight": torch.zeros(4096, 16)})
    assert resolve(str(wide)).variant == "klein-9b"
    assert resolve(f"FLUX.2-klein-base-9B+{wide}").variant == "klein-base-9b"
    assert resolve(f"FLUX.2-klein-9B={wide}").name == "FLUX.2-klein-9B"
