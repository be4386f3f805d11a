"""LoRAs of FLUX.2 in the packed engine against diffusers' own loading, and against themselves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.accelerator import CpuAccelerator
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.frames import Failed, Finished
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, of, pictures, submit
from tests.pipelines.families.flux2.kleins import klein, params, theirs_with

TOLERANCE = 1
ALL = ("",)
"""Every linear there is: blocks, embedders, modulation, time, the last projection."""


def adapting(folder: Path, is_base: bool = False) -> Flux2Runner:
    return Flux2Runner(klein(is_base), CpuAccelerator(), adapters=AdapterCache(folder, 1 << 30))


def draw(runner: Flux2Runner, wanted: GenerationParams) -> np.ndarray:
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", wanted)
    frames = drain(engine)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")[0]


def oracle(wanted: GenerationParams, adapters: Mapping[Path, float], is_base: bool = False) -> np.ndarray:
    """diffusers' own picture with these files at these scales."""
    own = replace(klein(is_base), transformer=copy.deepcopy(klein(is_base).transformer))
    pipeline = own.pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is what we want
        for file in adapters:
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    pipeline.set_adapters([file.stem for file in adapters], list(adapters.values()))
    return theirs_with(pipeline, wanted, is_base)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(("among", "is_base"), [(("transformer_blocks.", "single_"), False), (ALL, False), (ALL, True)])
def test_one_adapter_draws_what_diffusers_draws(tmp_path: Path, among: tuple[str, ...], is_base: bool) -> None:
    lora = random_lora(klein().transformer, rank=3, seed=1, among=among, but="no layer")
    file = save_diffusers(lora, tmp_path / "a.safetensors")
    wanted = params(guidance_scale=3.0, adapters=(Adapter(file.name, 0.7),))
    ours = draw(adapting(tmp_path, is_base), wanted)
    assert distance(ours, oracle(wanted, {file: 0.7}, is_base)) <= TOLERANCE
    assert distance(ours, draw(adapting(tmp_path, is_base), replace(wanted, adapters=()))) > 20


def test_two_adapters_add_up(tmp_path: Path) -> None:
    files = [
        save_diffusers(random_lora(klein().transformer, 2, seed), tmp_path / f"l{seed}.safetensors") for seed in (1, 2)
    ]
    wanted = params(adapters=tuple(Adapter(file.name, scale) for file, scale in zip(files, (0.5, -0.8), strict=True)))
    expected = oracle(wanted, dict(zip(files, (0.5, -0.8), strict=True)))
    assert distance(draw(adapting(tmp_path), wanted), expected) <= TOLERANCE


def test_different_adapters_share_a_step(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_diffusers(random_lora(klein().transformer, 2, seed), tmp_path / f"l{seed}.safetensors")
    runner = adapting(tmp_path)
    asked = [
        params(seed=seed, adapters=adapters, width=width)
        for seed, adapters, width in (
            (1, (Adapter("l1.safetensors"),), 48),
            (2, (), 64),
            (3, (Adapter("l2.safetensors", 0.5), Adapter("l1.safetensors")), 48),
        )
    ]
    alone = [draw(runner, wanted) for wanted in asked]
    engine = Engine(lambda name: runner, CpuAccelerator())
    for index, wanted in enumerate(asked):
        submit(engine, f"r{index}", wanted)
    frames = drain(engine)
    for index, picture in enumerate(alone):
        assert distance(pictures(frames, f"r{index}")[0], picture) <= TOLERANCE


def test_black_forest_labs_names_and_bare_ones_mean_the_same(tmp_path: Path) -> None:
    mine = random_lora(klein().transformer, 2, seed=1, among=("single_transformer_blocks.",))
    draws = {}
    for name, prefix in (("own", "transformer."), ("bare", ""), ("comfy", "diffusion_model.")):
        file = save_diffusers(mine, tmp_path / f"{name}.safetensors", prefix)
        if name == "comfy":
            renamed = {
                key.replace("single_transformer_blocks", "single_blocks")
                .replace("attn.to_qkv_mlp_proj", "linear1")
                .replace("attn.to_out", "linear2"): tensor
                for key, tensor in load_file(file).items()
            }
            save_file(renamed, file)
        draws[name] = draw(adapting(tmp_path), params(adapters=(Adapter(file.name),)))
    assert np.array_equal(draws["own"], draws["bare"])
    assert np.array_equal(draws["own"], draws["comfy"])


def test_kohyas_layout_means_the_same(tmp_path: Path) -> None:
    mine = random_lora(klein().transformer, 2, seed=1, among=("single_transformer_blocks.",))
    save_diffusers(mine, tmp_path / "own.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, part in mine.items():
        block, layer = name.split(".")[1], "linear1" if "to_qkv" in name else "linear2"
        key = f"lora_unet_single_blocks_{block}_{layer}"
        tensors |= {f"{key}.lora_down.weight": part.down, f"{key}.lora_up.weight": part.up.contiguous()}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)  # of rank 2: a half
    save_file(tensors, tmp_path / "kohya.safetensors")
    half = draw(adapting(tmp_path), params(adapters=(Adapter("own.safetensors", 0.5),)))
    kohya = draw(adapting(tmp_path), params(adapters=(Adapter("kohya.safetensors"),)))
    assert distance(half, kohya) <= TOLERANCE
    assert distance(half, draw(adapting(tmp_path), params())) > 20


def test_alpha_counts_wherever_it_is_written(tmp_path: Path) -> None:
    mine = random_lora(klein().transformer, 4, seed=1)
    plain = save_diffusers(mine, tmp_path / "plain.safetensors")
    tensors = load_file(plain)
    alphas = {key.replace(".lora_A.weight", ".alpha"): torch.tensor(1.0) for key in tensors if "lora_A" in key}
    save_file(tensors | alphas, tmp_path / "alpha.safetensors")
    with_alpha = draw(adapting(tmp_path), params(adapters=(Adapter("alpha.safetensors"),)))
    quarter = draw(adapting(tmp_path), params(adapters=(Adapter("plain.safetensors", 0.25),)))
    assert distance(with_alpha, quarter) <= TOLERANCE


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("transformer.transformer_blocks.7.attn.to_q", "has no layer transformer_blocks.7.attn.to_q"),
        ("diffusion_model.middle.linear", "no layout of FLUX.2|no layer of FLUX.2"),
    ],
)
def test_what_fits_no_layer_is_refused_by_name(tmp_path: Path, key: str, words: str) -> None:
    matrices = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}
    save_file(matrices, tmp_path / "a.safetensors")
    runner = adapting(tmp_path)
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", params(adapters=(Adapter("a.safetensors"),)))
    (failed,) = of(drain(engine), "a", Failed)
    assert isinstance(failed, Failed)
    assert any(part in failed.message for part in words.split("|")), failed.message
