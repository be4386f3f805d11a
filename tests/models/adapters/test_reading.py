"""LoRA files: every trainer's layout means the same, and what cannot be used says which key and why."""

from __future__ import annotations

import json
import pickle
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from models.adapter_files import MAX_HEADER_BYTES, AdapterError, check_adapter_file
from models.adapters.reading import LowRank, read_adapter
from models.architectures import ARCHITECTURES
from models.components import FluxComponents
from pipelines.adapters.adapter import FittedAdapter, fit, targets
from tests.pipelines.adapters.loras import diffusers_keys, random_lora, save_diffusers, save_kohya


def loaded(file: Path, components: FluxComponents) -> FittedAdapter:
    device = torch.device("cpu")
    return fit(read_adapter(file), components.transformer, components.text_encoder, device, torch.float32)


def effects(adapter: FittedAdapter) -> dict[str, Tensor]:
    """What each linear's weight would have to gain, transposed."""
    found = {}
    for name, product in adapter.transformer.items():
        columns = max(part.up.shape[1] + (part.columns.start if part.columns else 0) for part in product.parts)
        gain = torch.zeros(len(product.down), columns)
        product.add(torch.eye(len(product.down)), gain, 1.0)
        found[name] = gain
    return found


def assert_same(a: FittedAdapter, b: FittedAdapter) -> None:
    ours, theirs = effects(a), effects(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("bfl_names", [False, True])
def test_kohyas_layout_means_what_diffusers_layout_means(
    components: FluxComponents, tmp_path: Path, bfl_names: bool
) -> None:
    parts = random_lora(components.transformer, 4, 1)
    ours = loaded(save_diffusers(parts, tmp_path / "d.safetensors"), components)
    kohya = loaded(save_kohya(parts, tmp_path / "k.safetensors", alpha=2.0, bfl_names=bfl_names), components)
    assert_same(kohya, ours)


@pytest.mark.parametrize("bfl_names", [False, True])
def test_kohyas_layout_at_flux1s_own_width_goes_through_diffusers_converter(tmp_path: Path, bfl_names: bool) -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**ARCHITECTURES["random:FLUX.1-dev"].transformer)

    def fitted(file: Path) -> FittedAdapter:
        return fit(read_adapter(file), transformer, torch.nn.Module(), torch.device("cpu"), torch.float32)

    blocks = ("transformer_blocks.18.", "single_transformer_blocks.37.")
    parts = random_lora(transformer, 2, 1, among=blocks, but="no layer")
    ours = fitted(save_diffusers(parts, tmp_path / "d.safetensors"))
    kohya = fitted(save_kohya(parts, tmp_path / "k.safetensors", alpha=8.0, bfl_names=bfl_names))
    assert ours.transformer.keys() == kohya.transformer.keys()
    assert "single_transformer_blocks.37.proj_mlp" in ours.transformer
    probe = torch.randn(3, 5 * 3072, generator=torch.Generator().manual_seed(0))
    for name, target in targets(transformer).items():
        if name in ours.transformer:
            results = torch.zeros(2, 3, target.columns)
            for adapter, result in zip((ours, kohya), results, strict=True):
                adapter.transformer[name].add(probe[:, : target.inputs], result, 1.0)
            torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_xlabs_layout_means_what_diffusers_layout_means(components: FluxComponents, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    width = components.transformer.inner_dim
    down, up = (torch.randn(shape, generator=generator) for shape in ((3, width), (3 * width, 3)))
    save_file(
        {
            "double_blocks.0.processor.qkv_lora1.down.weight": down,
            "double_blocks.0.processor.qkv_lora1.up.weight": up,
        },
        tmp_path / "x.safetensors",
    )
    names = ("to_q", "to_k", "to_v")
    parts = {
        f"transformer_blocks.0.attn.{n}": LowRank(down.clone(), part)
        for n, part in zip(names, up.split(width), strict=True)
    }
    ours = loaded(tmp_path / "x.safetensors", components)
    assert_same(ours, loaded(save_diffusers(parts, tmp_path / "d.safetensors"), components))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_names_with_and_without_a_prefix_mean_the_same(components: FluxComponents, tmp_path: Path, prefix: str) -> None:
    parts = random_lora(components.transformer, 2, 1)
    ours = loaded(save_diffusers(parts, tmp_path / "a.safetensors", prefix), components)
    assert_same(ours, loaded(save_diffusers(parts, tmp_path / "b.safetensors"), components))


def test_alpha_counts_wherever_it_is_written(components: FluxComponents, tmp_path: Path) -> None:
    parts = random_lora(components.transformer, 4, 1)
    doubled = {name: LowRank(part.down, part.up * 2) for name, part in parts.items()}
    expected = loaded(save_diffusers(doubled, tmp_path / "doubled.safetensors"), components)
    training = json.dumps({"transformer.lora_alpha": 8, "transformer.r": 4})
    by_peft = save_diffusers(parts, tmp_path / "p.safetensors", lora_adapter_metadata=training)
    assert_same(loaded(by_peft, components), expected)
    alphas = {f"transformer.{name}.alpha": torch.tensor(8.0) for name in parts}
    save_file(diffusers_keys(parts) | alphas, tmp_path / "k.safetensors")
    assert_same(loaded(tmp_path / "k.safetensors", components), expected)


def header_only(file: Path, header: object, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    return file


def tensors_with(tmp_path: Path, **tensors: Tensor) -> Path:
    save_file({key.replace("__", "."): tensor for key, tensor in tensors.items()}, tmp_path / "bad.safetensors")
    return tmp_path / "bad.safetensors"


Q = "transformer__transformer_blocks__0__attn__to_q__"


def test_a_file_that_is_none_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(pickle.dumps({"lora": [1, 2, 3]}))
    with pytest.raises(AdapterError, match="not a safetensors file; pickled weights"):
        check_adapter_file(file)
    file.write_bytes(b"")
    with pytest.raises(AdapterError, match="not a safetensors file"):
        check_adapter_file(file)
    file.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1))
    with pytest.raises(AdapterError, match="its header has"):
        check_adapter_file(file)
    file.write_bytes(struct.pack("<Q", 60_000) + b"[" * 60_000)
    with pytest.raises(AdapterError, match="not a safetensors file"):
        check_adapter_file(file)
    for header in (
        [],
        {"a.lora_A.weight": 3},
        {"a.lora_A.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
    ):
        with pytest.raises(AdapterError, match="damaged"):
            check_adapter_file(header_only(file, header))
    liar = {"a.lora_A.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}
    with pytest.raises(AdapterError, match="does not fit its shape"):
        check_adapter_file(header_only(file, liar))
    with pytest.raises(AdapterError, match="holds 0 tensors"):
        check_adapter_file(header_only(file, {}))


def test_a_truncated_file_is_refused(components: FluxComponents, tmp_path: Path) -> None:
    file = save_diffusers(random_lora(components.transformer, 2, 1), tmp_path / "a.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cut short"):
        check_adapter_file(file)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("a.lora_A.weight a.dora_scale", "DoRA"),
        ("lora_unet_double_blocks_0_img_mlp_0.lokr_w1", "LoKr"),
        ("lora_unet_double_blocks_0_img_mlp_0.hada_w1_a", "LoHa"),
        ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "SDXL"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "SDXL"),
        ("double_blocks.0.img_attn.norm.query_norm.scale x.lora_A.weight", "Control LoRA"),
        ("model.layers.0.weight", "not a LoRA"),
    ],
)
def test_other_kinds_and_other_families_are_told_apart_by_their_keys(tmp_path: Path, keys: str, words: str) -> None:
    save_file({key: torch.ones(2, 2) for key in keys.split()}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=words):
        check_adapter_file(tmp_path / "a.safetensors")


def test_values_that_are_not_numbers_are_refused(components: FluxComponents, tmp_path: Path) -> None:
    parts = random_lora(components.transformer, 2, 1)
    next(iter(parts.values())).down[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"key transformer\.transformer_blocks\.0.* not numbers"):
        read_adapter(save_diffusers(parts, tmp_path / "a.safetensors"))


def test_a_lora_for_another_width_names_the_layer_and_both_sizes(components: FluxComponents, tmp_path: Path) -> None:
    bad = tensors_with(
        tmp_path, **{f"{Q}lora_A__weight": torch.ones(4, 3072), f"{Q}lora_B__weight": torch.ones(3072, 4)}
    )
    with pytest.raises(AdapterError, match=r"transformer_blocks\.0\.attn\.to_q take 3072 values .* layer takes"):
        loaded(bad, components)


def test_a_layer_that_the_model_lacks_is_named(components: FluxComponents, tmp_path: Path) -> None:
    key = "transformer__transformer_blocks__18__attn__to_q__"
    bad = tensors_with(tmp_path, **{f"{key}lora_A__weight": torch.ones(4, 8), f"{key}lora_B__weight": torch.ones(8, 4)})
    with pytest.raises(AdapterError, match=r"no layer transformer_blocks\.18\.attn\.to_q"):
        loaded(bad, components)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{Q}lora_A__weight": torch.ones(4, 8)}, "only one of the two matrices"),
        ({f"{Q}lora_A__weight": torch.ones(4, 8), f"{Q}lora_B__weight": torch.ones(8, 5)}, "not one LoRA's"),
        ({f"{Q}lora_A__weight": torch.ones(4), f"{Q}lora_B__weight": torch.ones(8, 4)}, "not one LoRA's"),
        ({f"{Q}lora_A__weight": torch.ones(4, 8), f"{Q}lora_C__weight": torch.ones(8)}, "no part of a LoRA"),
        (
            {"lora_unet_nothing_0.lora_down.weight".replace(".", "__"): torch.ones(4, 8)},
            "no layer of FLUX.1 fits its key",
        ),
        (
            {
                "lora_unet_double_blocks_0_img_attn_proj__diff_b": torch.ones(4),
                "lora_unet_double_blocks_0_img_attn_proj__lora_down__weight": torch.ones(4, 8),
            },
            "changes biases",
        ),
        (
            {
                f"{name}__lora_{half}__weight": torch.ones(shape)
                for name in ("lora_unet_double_blocks_0_img_attn_proj", "stranger")
                for half, shape in (("down", (4, 8)), ("up", (8, 4)))
            },
            "no layer of FLUX.1 fits its key stranger",
        ),
    ],
)
def test_keys_that_fit_nothing_are_named(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        read_adapter(tensors_with(tmp_path, **tensors))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_escapes_as_anything_but_one_sentence(
    components: FluxComponents, tmp_path: Path, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["diffusers", "kohya", "bfl"]))
    parts = random_lora(components.transformer, 2, 1, among=("transformer_blocks.0.", "single_transformer_blocks.0."))
    file = tmp_path / "a.safetensors"
    if kind == "diffusers":
        save_diffusers(parts, file, lora_adapter_metadata=json.dumps({"transformer.lora_alpha": 2}))
    else:
        save_kohya(parts, file, 1.0, bfl_names=kind == "bfl")
    content = bytearray(file.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    if data.draw(st.booleans()):
        header = json.loads(content[8 : 8 + length])
        key = data.draw(st.sampled_from(sorted(header)))
        junk = st.sampled_from([None, [], {}, "", -1, 1e300, True, [2, 2], [[0]], {"dtype": []}, "F32", 2**63])
        if isinstance(header[key], dict) and data.draw(st.booleans()):
            header[key][data.draw(st.sampled_from(sorted(header[key])))] = data.draw(junk)
        elif data.draw(st.booleans()):
            header[data.draw(st.text(max_size=20)) + key] = header.pop(key)
        else:
            header[key] = data.draw(junk)
        text = json.dumps(header).encode()
        content = bytearray(struct.pack("<Q", len(text)) + text) + content[8 + length :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content) - 1, 8 + length)))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with suppress(AdapterError):
        loaded(file, components)
