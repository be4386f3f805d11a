"""T5's encoder as GGUF, in llama.cpp's layout, has the numbers that the gguf package unpacks."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load
from tests.models.single.writers import bfl, ldm_vae, write

NAMES = {
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.": "attn_",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block.": "enc.blk.",
    "shared": "token_embd",
}


def llama_cpp(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def write_t5(file: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its wide matrices as Q8_0; returns what the gguf package reads of every tensor."""
    writer, wanted = gguf.GGUFWriter(file, "t5encoder"), {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and "relative" not in name:
            blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(llama_cpp(name), blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(llama_cpp(name), values)
        wanted[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


def test_t5_as_gguf_is_found_beside_a_transformer_and_read(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    file = write(models / "unet" / "mine.safetensors", bfl(narrow.transformer.state_dict()))
    write(models / "vae" / "ae.safetensors", ldm_vae(narrow.vae.state_dict(), 4))
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in narrow.text_encoder.state_dict().items()}
    write(models / "clip" / "clip_l.safetensors", clip)
    state = {n: t for n, t in narrow.text_encoder_2.state_dict().items() if not n.endswith("embed_tokens.weight")}
    wanted = write_t5(models / "clip" / "t5-v1_1-xxl-encoder-Q8_0.gguf", state)
    for part in ("tokenizer", "tokenizer_2"):
        (tmp_path / part).symlink_to(narrow_folder / part)
    loaded = load(resolve(str(file), [models]), CpuAccelerator()).text_encoder_2.state_dict()
    for name, tensor in wanted.items():  # diffusers' functions multiply in float16
        assert torch.allclose(loaded[name], tensor, rtol=2**-10, atol=0), name
    assert len(wanted) == len(state)
