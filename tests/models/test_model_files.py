"""Checkpoints as people have them, damaged or of another kind: each is refused in one sentence."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.errors import LoadError
from models.files.headers import read_header
from models.loading import load
from models.packed import PackedLinear
from tests.models.conftest import spec
from tests.pipelines.pictures.test_safety import make_classifier, make_concepts

TRANSFORMER = Path("transformer/diffusion_pytorch_model.safetensors")
VAE = Path("vae/diffusion_pytorch_model.safetensors")
CLIP = Path("text_encoder/model.safetensors")
T5 = Path("text_encoder_2/model.safetensors")


def tensors(file: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Write the file's tensors again, changed."""
    changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    file.unlink()
    save_file(changed, file, {"format": "pt"})


def values(file: Path, **changes: Any) -> None:
    """Write a JSON object again, changed."""
    content = json.loads(file.read_bytes()) | changes
    file.unlink()
    file.write_text(json.dumps(content))


def content(file: Path, raw: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(raw)


def header(file: Path, raw: Any) -> None:
    body = json.dumps(raw).encode()
    content(file, struct.pack("<Q", len(body)) + body + b"\0" * 4)


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda t: {name: tensor for name, tensor in t.items() if not any(part in name for part in parts)}


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda t: {change(name): tensor for name, tensor in t.items()}


def lora(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return t | {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(1)}


def bfl(name: str) -> str:
    return name.replace("transformer_blocks", "double_blocks")


def pickle_index(part: str, stem: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        index = {"metadata": {}, "weight_map": {"anything": "weights.bin"}}
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        torch.save({"anything": torch.zeros(1)}, folder / part / "weights.bin")

    return spoil


def dangling(folder: Path) -> None:
    (folder / VAE).unlink()
    (folder / VAE).symlink_to("../../blobs/5f3a")


def pipe(folder: Path) -> None:
    """Nobody writes into it: opening it to read would wait for ever."""
    (folder / VAE).unlink()
    os.mkfifo(folder / VAE)


def removed(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()

    return spoil


def unprepared_checker(folder: Path) -> None:
    make_classifier({0: "normal", 1: "nsfw"}).model.save_pretrained(folder / "safety_checker")


def misfitting_checker(make: Callable[[], Any], beside: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        safety = make()
        safety.model.save_pretrained(folder / "safety_checker")
        safety.image_processor.save_pretrained(folder / beside)
        tensors(folder / "safety_checker" / "model.safetensors", lambda t: dict(list(t.items())[2:]))

    return spoil


def wordy(folder: Path) -> None:
    """A vocabulary of more words than the encoder has rows for."""
    file = folder / "tokenizer_2" / "tokenizer.json"
    told = json.loads(file.read_bytes())
    told["model"]["vocab"] |= {f"word{index}": 300 + index for index in range(60)}
    content(file, json.dumps(told).encode())


def own_code(folder: Path) -> None:
    """A tokenizer that asks for code of its own, which would leave a file behind."""
    where = folder / "tokenizer"
    values(where / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    values(where / "tokenizer_config.json", tokenizer_class="Evil")
    (where / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass Evil: ...\n")


def only_shard(folder: Path) -> None:
    (folder / TRANSFORMER).rename((folder / TRANSFORMER).with_name("model-00001-of-00002.safetensors"))


TABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "T5 without its embedding table": (
        lambda f: tensors(f / T5, without("shared", "embed_tokens")),
        r"text_encoder_2: of its tensors \d that its config.json announces are missing \(.*shared",
    ),
    "T5 without a layer": (lambda f: tensors(f / T5, without("block.0.layer.0")), "missing .*encoder.block.0.layer.0"),
    "T5 under a foreign prefix": (lambda f: tensors(f / T5, renamed(lambda n: "encoder." + n)), "text_encoder_2: of"),
    "CLIP without its tensors": (lambda f: tensors(f / CLIP, lambda t: {"a": torch.zeros(1)}), "text_encoder: of"),
    "VAE with one NaN": (
        lambda f: tensors(
            f / VAE, lambda t: {n: v.fill_(float("nan")) if i == 5 else v for i, (n, v) in enumerate(t.items())}
        ),
        "vae holds weights that are not numbers",
    ),
    "guidance announced, none there": (
        lambda f: tensors(f / TRANSFORMER, without("guidance_embedder")),
        r"transformer: .* missing \(time_text_embed.guidance_embedder",
    ),
    "guidance there, none announced": (
        lambda f: values(f / "transformer/config.json", guidance_embeds=False),
        r"transformer: .* have no place .*guidance_embedder",
    ),
    "more layers announced": (lambda f: values(f / "transformer/config.json", num_layers=3), "missing .*blocks.2"),
    "fewer layers announced": (lambda f: values(f / "transformer/config.json", num_layers=1), "no place .*blocks.1"),
    "other widths announced": (
        lambda f: values(f / "transformer/config.json", num_attention_heads=4),
        "have another shape",
    ),
    "a LoRA that was not merged": (lambda f: tensors(f / TRANSFORMER, lora), "looks like a LoRA that was not merged"),
    "BFL's layout": (lambda f: tensors(f / TRANSFORMER, renamed(bfl)), "looks like Black Forest Labs' layout"),
    "ComfyUI's layout": (
        lambda f: tensors(f / TRANSFORMER, renamed(lambda n: "model.diffusion_model." + n)),
        "looks like ComfyUI's layout",
    ),
    "VAE in ldm layout": (
        lambda f: tensors(f / VAE, renamed(lambda n: n.replace("up_blocks.0.resnets", "up.0.block"))),
        "looks like a VAE in the layout of latent diffusion",
    ),
    "VAE with the decoder alone": (lambda f: tensors(f / VAE, without("encoder.")), r"vae: .* missing \(encoder\."),
    "scales beside weights that are not float8": (
        lambda f: tensors(f / TRANSFORMER, lambda t: t | {"proj_out.weight_scale": torch.ones(1)}),
        "scales beside no float8",
    ),
    "an index that names a pickle": (pickle_index("transformer", "diffusion_pytorch_model"), "never loaded"),
    "an index that names a pickle, text": (pickle_index("text_encoder_2", "model"), "never loaded"),
    "an index that leaves the folder": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../../x.safetensors"}})
        ),
        "no file beside it",
    ),
    "an index without its files": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "x.safetensors"}})
        ),
        "names x.safetensors, not there",
    ),
    "a damaged index": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors.index.json").write_text("[]"),
        "index.json is damaged",
    ),
    "a shard without an index": (only_shard, "under the name .*only model-00001-of-00002"),
    "a header that is a list": (lambda f: header(f / VAE, [1]), "no table of tensors"),
    "a header without offsets": (
        lambda f: header(f / VAE, {"a": {"dtype": "F32", "shape": [1]}}),
        "describes no tensor",
    ),
    "one offset": (
        lambda f: header(f / VAE, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}),
        "describes no tensor under 'a'",
    ),
    "offsets in words": (
        lambda f: header(f / VAE, {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}),
        "describes no tensor under 'a'",
    ),
    "a number for a tensor": (lambda f: header(f / VAE, {"a": 7}), "describes no tensor under 'a'"),
    "offsets that leave the file": (
        lambda f: header(f / VAE, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}}),
        "do not match its shape",
    ),
    "a type that does not exist": (
        lambda f: header(f / VAE, {"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}),
        "unknown type PICKLE",
    ),
    "a file that is cut short": (lambda f: content(f / VAE, (f / VAE).read_bytes()[:-100]), "cut short"),
    "a page that asks to log in": (
        lambda f: content(f / VAE, b"<!DOCTYPE html><html>log in</html>"),
        "not a safetensors",
    ),
    "an LFS pointer": (
        lambda f: content(f / VAE, b"version https://git-lfs.github.com/spec/v1\noid sha256:5f\nsize 9\n"),
        "git lfs pull",
    ),
    "an empty file": (lambda f: content(f / VAE, b""), "not a safetensors file"),
    "a pickle under the right name": (
        lambda f: content(f / VAE, b"PK\x03\x04" + b"\0" * 99),
        "a pickle, which is never",
    ),
    "a pickle by name": (lambda f: (f / VAE).rename(f / "vae/diffusion_pytorch_model.bin"), "never loaded"),
    "a pipe": (pipe, r"vae/diffusion.* cannot be read \(no regular file\)"),
    "a link that leads nowhere": (dangling, r"vae/diffusion.* a link to \.\./\.\./blobs/5f3a cannot be read"),
    **{
        f"packed by {method}, {part}": (
            lambda f, part=part, method=method: values(
                f / part / "config.json", quantization_config={"quant_method": method}
            ),
            f"part {part} holds weights packed by {method}",
        )
        for part in ("transformer", "text_encoder_2")
        for method in ("hqq", "modelopt", "auto-round")
    },
    "packed for one kind of card": (
        lambda f: values(
            f / "transformer/config.json",
            quantization_config={
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}},
            },
        ),
        "part transformer holds weights packed by torchao's Int4WeightOnlyConfig, which are not served; .* or int8",
    ),
    "int8 without its scales": (
        lambda f: tensors(
            f / TRANSFORMER, lambda t: t | {"transformer_blocks.0.attn.to_q._weight_qdata": torch.zeros(1).char()}
        ),
        "to_q.weight is packed, but what belongs to it is damaged",
    ),
    "no tokenizer": (removed("tokenizer"), "the part tokenizer is missing"),
    "no second tokenizer": (removed("tokenizer_2"), "the part tokenizer_2 is missing"),
    "no scheduler": (removed("scheduler"), "the part scheduler is missing"),
    "no VAE": (removed("vae"), "the part vae has no config.json"),
    "a damaged config": (lambda f: content(f / "vae/config.json", b"{"), "vae/config.json is damaged"),
    "a config that is a list": (lambda f: content(f / "vae/config.json", b"[]"), "no JSON object"),
    "a config with words for numbers": (
        lambda f: values(f / "transformer/config.json", num_layers="two"),
        "cannot be used",
    ),
    "a damaged tokenizer": (
        lambda f: content(f / "tokenizer/tokenizer.json", b"{}"),
        "the part tokenizer cannot be used",
    ),
    "a checker that nothing prepares for": (unprepared_checker, "safety_checker has no preprocessor_config.json"),
    "a checker whose weights do not fit": (
        misfitting_checker(lambda: make_classifier({0: "normal", 1: "nsfw"}), "safety_checker"),
        "safety_checker: .* are missing",
    ),
    "another checker whose weights do not fit": (
        misfitting_checker(make_concepts, "feature_extractor"),
        "safety_checker: .* are missing",
    ),
    "a vocabulary that does not fit": (wordy, "tokenizer_2 has 318 words, but .* has 300 rows"),
    "a text encoder of another width": (
        lambda f: values(f / "transformer/config.json", joint_attention_dim=48),
        "have another shape",
    ),
    "code of its own": (own_code, "the part tokenizer brings code of its own, which is never run"),
    "FLUX.2": (
        lambda f: values(f / "model_index.json", _class_name="Flux2ModularPipeline"),
        "a checkpoint for Flux2ModularPipeline",
    ),
    "SDXL": (
        lambda f: values(f / "model_index.json", _class_name="StableDiffusion3Pipeline"),
        "for StableDiffusion3Pipeline, another architecture",
    ),
    "Chroma": (lambda f: values(f / "model_index.json", _class_name="ChromaPipeline"), "for ChromaPipeline"),
    "a pipeline of its own": (
        lambda f: values(f / "model_index.json", _class_name=["mine", "MyPipeline"]),
        "code of its own is never run",
    ),
    "no index of the pipeline": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "a GGUF file in place of weights": (
        lambda f: (f / TRANSFORMER).rename(f / "transformer/flux1-dev-Q4_K_S.gguf"),
        "a GGUF file is given by itself",
    ),
}
"""How each is made, and what its sentence must say."""


@pytest.mark.parametrize("kind", TABLE)
def test_what_cannot_be_served_is_refused_in_one_sentence(copy: Path, kind: str) -> None:
    spoil, words = TABLE[kind]
    spoil(copy)
    with pytest.raises(LoadError, match=words) as caught:
        load(spec(copy), CpuAccelerator())
    assert "\n" not in str(caught.value)
    assert str(copy) not in str(caught.value)
    assert not (copy / "ran").exists()


def shards(folder: Path) -> None:
    """Two files and an index, with damaged and harmless files beside them that it does not name."""
    weights, part = load_file(folder / TRANSFORMER), folder / "transformer"
    names = sorted(weights)
    shards = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, part / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (part / f"{TRANSFORMER.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    content(part / "old.safetensors", b"cut short")


def untied(t: dict[str, Tensor]) -> dict[str, Tensor]:
    table = t.get("shared.weight", t.get("encoder.embed_tokens.weight"))
    assert table is not None
    return t | {"shared.weight": table, "encoder.embed_tokens.weight": table.clone()}


HARMLESS: dict[str, Callable[[Path], object]] = {
    "shards, and damaged files that nothing names": shards,
    "a variant alone": lambda f: (f / TRANSFORMER).rename(f / "transformer/diffusion_pytorch_model.fp16.safetensors"),
    "a variant of the text encoder": lambda f: (f / T5).rename(f / "text_encoder_2/model.bf16.safetensors"),
    "a damaged variant beside the file": lambda f: content(f / "vae/diffusion_pytorch_model.fp16.safetensors", b""),
    "an untied embedding": lambda f: tensors(f / T5, untied),
    "counted positions": lambda f: tensors(
        f / CLIP, lambda t: t | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    ),
    "a folder of a fine-tune": lambda f: values(f / "model_index.json", _class_name="FluxImg2ImgPipeline"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_only_unusual_is_loaded(copy: Path, checkpoint: Path, kind: str) -> None:
    HARMLESS[kind](copy)
    ours, theirs = (load(spec(folder), CpuAccelerator()).modules for folder in (copy, checkpoint))
    for name, module in theirs.items():
        state = ours[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items()), name


def test_float8_weights_of_the_transformer_stay_so_and_mean_their_values(copy: Path) -> None:
    tensors(copy / TRANSFORMER, lambda t: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in t.items()})
    loaded, stored = load(spec(copy), CpuAccelerator()).transformer, load_file(copy / TRANSFORMER)
    plain = loaded.state_dict()
    for name, tensor in stored.items():
        layer = loaded.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, PackedLinear) and name.endswith("weight"):
            assert layer.weight.values.dtype == torch.float8_e4m3fn  # type: ignore[union-attr]
            assert torch.equal(layer.weight.unpack(torch.float32), tensor.float())
        else:
            assert torch.equal(plain[name], tensor.float())


def test_header_says_where_each_tensor_lies(checkpoint: Path) -> None:
    entries = read_header(checkpoint / TRANSFORMER)
    raw = (checkpoint / TRANSFORMER).read_bytes()
    for name, tensor in load_file(checkpoint / TRANSFORMER).items():
        entry = entries[name]
        assert entry.shape == tuple(tensor.shape)
        assert raw[entry.start : entry.stop] == tensor.numpy().tobytes()
