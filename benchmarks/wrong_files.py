"""What `serve` and `generate` say of files that hold no FLUX.1, and how soon.

    python -m benchmarks.wrong_files

Makes a corpus in a temporary folder (large files are sparse), gives each file as --model, and prints a table of
seconds, of them the processor's, exit status and sentence, the slowest last.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Make = Callable[[Path], object]
_COMMAND = "from server.cli.main import main; main()"


def weights(file: Path, names: Iterable[str], megabytes: float = 100) -> Path:
    """A sound safetensors file with tensors of these names, sparse."""
    every = list(names)
    each = max(4, int(megabytes * 1e6 / len(every)) // 4 * 4)
    header = {
        name: {"dtype": "F32", "shape": [each // 4], "data_offsets": [each * index, each * (index + 1)]}
        for index, name in enumerate(every)
    }
    return raw(file, header, each * len(every))


def raw(file: Path, header: object, size: int) -> Path:
    """A header of our own and `size` bytes of nothing."""
    body = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(body)) + body)
        stream.truncate(8 + len(body) + size)
    return file


def content(file: Path, start: bytes, size: int = 0) -> None:
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(max(size, len(start)))


def _numbered(count: int, *names: str) -> list[str]:
    return [name.format(number) for number in range(count) for name in names]


_UNET = _numbered(12, "input_blocks.{}.0.in_layers.0.weight", "output_blocks.{}.0.in_layers.0.weight")
_VAE = _numbered(4, "decoder.up.{}.block.0.conv1.weight", "encoder.down.{}.block.0.conv1.weight")
_FLUX = [
    "img_in.weight", "vector_in.in_layer.weight", "double_blocks.0.img_attn.qkv.weight",
    "single_blocks.0.linear1.weight",
]  # fmt: skip


def _sd15(file: Path) -> None:
    text = _numbered(12, "cond_stage_model.transformer.text_model.encoder.layers.{}.self_attn.q_proj.weight")
    weights(file, [f"model.diffusion_model.{n}" for n in _UNET] + [f"first_stage_model.{n}" for n in _VAE] + text, 2000)


def _sdxl(file: Path) -> None:
    unet = [*_UNET, "input_blocks.0.0.weight", "label_emb.0.0.weight"]
    vae = [*_VAE, "decoder.conv_in.weight"]
    weights(file, [f"model.diffusion_model.{n}" for n in unet] + [f"first_stage_model.{n}" for n in vae], 5500)


def _cut(file: Path) -> None:
    weights(file, _FLUX, 1000)
    os.truncate(file, 500_000_000)


def _gguf_llm(file: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(file, "llama")
    for name in _numbered(32, "blk.{}.attn_q.weight", "blk.{}.ffn_up.weight"):
        writer.add_tensor(name, np.zeros((4, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def _folder(index: object) -> Make:
    def make(folder: Path) -> None:
        folder.mkdir()
        if index is not None:
            (folder / "model_index.json").write_text(json.dumps(index))

    return make


CORPUS: dict[str, tuple[str, Make, str]] = {
    "Stable Diffusion 1.5": (
        "sd15.safetensors",
        _sd15,
        "holds Stable Diffusion 1 or 2, which are other architectures",
    ),
    "SDXL's UNet and VAE": ("sdxl.safetensors", _sdxl, "holds SDXL's UNet without its CLIP L, CLIP G; take the rest"),
    "Stable Diffusion 3.5": (
        "sd35.safetensors",
        lambda f: weights(f, _numbered(38, "model.diffusion_model.joint_blocks.{}.x_block.attn.qkv.weight")),
        "holds Stable Diffusion 3, which",
    ),
    "FLUX.2 [dev]": (
        "flux2.safetensors",
        lambda f: weights(f, [*_FLUX[2:], "double_stream_modulation_img.lin.weight", "guidance_in.in_layer.weight"]),
        "holds FLUX.2 .dev.'s transformer alone; take the rest from a folder",
    ),
    "FLUX.2 [klein] without companions": (
        "klein.safetensors",
        lambda f: weights(f, [*_FLUX[2:], "double_stream_modulation_img.lin.weight"]),
        "needs Qwen3",
    ),
    "Chroma": ("chroma.safetensors", lambda f: weights(f, ["distilled_guidance_layer.in_proj.weight"]), "holds Chroma"),
    "a LoRA of kohya": (
        "lora.safetensors",
        lambda f: weights(f, _numbered(19, "lora_unet_double_blocks_{}_img_attn_qkv.lora_down.weight")),
        "holds a LoRA that was not merged; serve the base model",
    ),
    "a LoRA of diffusers": (
        "pytorch_lora_weights.safetensors",
        lambda f: weights(f, _numbered(19, "transformer.transformer_blocks.{}.attn.to_q.lora_A.weight")),
        "holds a LoRA that was not merged",
    ),
    "a LoRA of XLabs": (
        "xlabs.safetensors",
        lambda f: weights(f, _numbered(19, "double_blocks.{}.processor.qkv_lora1.down.weight")),
        "holds a LoRA that was not merged",
    ),
    "VAE alone": ("ae.safetensors", lambda f: weights(f, _VAE, 335), "holds a VAE"),
    "T5 alone": (
        "t5xxl_fp16.safetensors",
        lambda f: weights(f, _numbered(24, "encoder.block.{}.layer.0.SelfAttention.q.weight"), 9800),
        "holds T5 alone, not FLUX.1's transformer",
    ),
    "CLIP alone": (
        "clip_l.safetensors",
        lambda f: weights(f, _numbered(12, "text_model.encoder.layers.{}.self_attn.q_proj.weight"), 246),
        "holds CLIP alone",
    ),
    "an upscaler": (
        "4x.safetensors",
        lambda f: weights(f, _numbered(30, "model.{}.weight")),
        "holds no model that is known",
    ),
    "cut short": ("cut.safetensors", _cut, "cut short or damaged: 500000000 bytes"),
    "a pickle": ("model.ckpt", lambda f: f.write_bytes(pickle.dumps([1])), "a pickle, which is never loaded"),
    "a pickle under another name": (
        "model.safetensors",
        lambda f: content(f, b"PK\x03\x04", 2_000_000_000),
        "a pickle, which is never loaded",
    ),
    "a page that asks to log in": (
        "page.safetensors",
        lambda f: f.write_bytes(b"<!DOCTYPE html><html>Log in</html>"),
        "not a safetensors file",
    ),
    "a Git LFS pointer": (
        "lfs.safetensors",
        lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:5f\n"),
        "git lfs pull",
    ),
    "empty": ("empty.safetensors", lambda f: f.write_bytes(b""), "not a safetensors file"),
    "zeros": ("zeros.safetensors", lambda f: content(f, b"", 12_000_000_000), "not a safetensors file"),
    "a header longer than the file": (
        "long.safetensors",
        lambda f: f.write_bytes(b"\xff" * 64),
        "not a safetensors file",
    ),
    "a header of 90 MB": (
        "huge.safetensors",
        lambda f: raw(f, {"__metadata__": {"notes": "a" * 90_000_000}}, 0),
        "not a safetensors file",
    ),
    "90,000 tensors": (
        "deep.safetensors",
        lambda f: weights(f, (f"t{n:06}" for n in range(90_000)), 10),
        "90000 tensors, more than any model",
    ),
    "a header of nested lists": (
        "nested.safetensors",
        lambda f: f.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
        "not a safetensors file",
    ),
    "GGUF of a language model": ("llama.gguf", _gguf_llm, "holds no model that is known"),
    "GGUF cut short": (
        "cut.gguf",
        lambda f: f.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40),
        "damaged or no GGUF file",
    ),
    "GGUF under another name": (
        "x.safetensors",
        lambda f: f.write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 99),
        "holds no model that is known",
    ),
    "FLUX.1 without companions": ("flux1-dev.safetensors", lambda f: weights(f, _FLUX, 23_800), "needs CLIP"),
    "a folder of Stable Diffusion 3": (
        "sdxl",
        _folder({"_class_name": "StableDiffusion3Pipeline"}),
        "for StableDiffusion3Pipeline, another architecture",
    ),
    "an empty folder": ("nothing", _folder(None), "no model_index.json"),
    "a folder without parts": ("hollow", _folder({"_class_name": "FluxPipeline"}), "text_encoder has no config.json"),
}
"""(name, how it is made, what its sentence says)"""


def measured(command: list[str], folder: Path) -> tuple[float, float, int, str]:
    """(seconds, of them the processor's, exit status, what it said)"""
    started, before = time.monotonic(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *command], capture_output=True, text=True, timeout=120, cwd=folder
    )
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - started, worked, done.returncode, (done.stderr or done.stdout).strip()


def main() -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["PYTHONPATH"] = os.getcwd()
        for kind, (name, make, _) in CORPUS.items():
            (root / "one").mkdir()
            file = root / "one" / name
            make(file)
            serve = ["serve", "--port", "0", "--tls-port", "0", "--device", "cpu", "--data-dir", str(root / "data")]
            for command in (serve, ["generate", "x", "-o", str(root / "x.png")]):
                seconds, worked, status, said = measured([*command, "--model", str(file)], root)
                line = f"| {command[0]} | {kind} | {seconds:.2f} s | {worked:.2f} s | {status} | {said} |"
                rows.append((worked, line))
            subprocess.run(["rm", "-r", str(root / "one")], check=True)
    print("| command | file | after | processor | exit | sentence |\n|---|---|---|---|---|---|")
    print("\n".join(line for _, line in sorted(rows)))


if __name__ == "__main__":
    main()
