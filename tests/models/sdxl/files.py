"""SDXL as model sites publish it, one file in the layout of latent diffusion, written for tests."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from models.sdxl.architectures import ARCHITECTURES, EULER
from models.single.companions import SHIPPED
from tests.models.single.writers import Tensors, ldm_vae, prefixed
from tests.pipelines.conftest import amplify

SDXL = ARCHITECTURES["random:SDXL"]
_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_UNET_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
)  # fmt: skip
_OPEN_CLIP = (
    ("text_model.encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
    ("text_model.final_layer_norm", "ln_final"), ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
)  # fmt: skip


def narrow_sdxl() -> StableDiffusionXLPipeline:
    """Narrow, with the proportions that shapes tell as published: heads of 64, groups of 32, the real words."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        **SDXL.unet
        | {
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (1, 1, 1),
            "transformer_layers_per_block": (1, 1, 2),
            "layers_per_block": 1,
            "cross_attention_dim": 128,
            "projection_class_embeddings_input_dim": 6 * 256 + 48,
        }
    )
    vae = AutoencoderKL(**SDXL.vae | {"block_out_channels": (32,) * 4, "layers_per_block": 1})
    narrow = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    clip = CLIPTextModel(CLIPTextConfig(**SDXL.clip | narrow | {"projection_dim": 64}, hidden_act="quick_gelu"))
    clip_2 = CLIPTextModelWithProjection(
        CLIPTextConfig(**SDXL.clip_2 | narrow | {"projection_dim": 48}, hidden_act="gelu")
    )
    for part, std in ((unet, 0.1), (vae, 0.1), (clip, 0.3), (clip_2, 0.3)):
        amplify(part.eval().requires_grad_(False), std)
    words, words_2 = AutoTokenizer.from_pretrained(SHIPPED / "clip"), AutoTokenizer.from_pretrained(SHIPPED / "clip")
    words_2.pad_token = "!"
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=clip, text_encoder_2=clip_2, tokenizer=words, tokenizer_2=words_2, unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(dict(EULER)), add_watermarker=False,
    )  # fmt: skip


def one_file(pipeline: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in pipeline.text_encoder.state_dict().items()}
    return {
        **prefixed("model.diffusion_model.", ldm_unet(pipeline.unet.state_dict(), 1)),
        **prefixed("first_stage_model.", ldm_vae(pipeline.vae.state_dict(), 4)),
        **prefixed("conditioner.embedders.0.transformer.", clip),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        **prefixed("conditioner.embedders.1.model.", open_clip(pipeline.text_encoder_2.state_dict())),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }


def ldm_unet(state: Tensors, layers: int) -> dict[str, Tensor]:
    """A UNet2DConditionModel's tensors. Args: layers: residual blocks a level."""
    out = {}
    for name, tensor in state.items():
        new = _ended(name)
        if match := re.match(r"down_blocks\.(\d)\.(resnets|attentions|downsamplers)\.(\d)\.(.*)", name):
            block, kind, number, rest = int(match[1]), match[2], int(match[3]), match[4]
            at = block * (layers + 1) + number + 1
            new = f"input_blocks.{at}.{'1' if kind == 'attentions' else '0'}.{rest}"
            if kind == "downsamplers":
                new = f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
        elif match := re.match(r"up_blocks\.(\d)\.(resnets|attentions|upsamplers)\.(\d)\.(.*)", name):
            block, kind, number, rest = int(match[1]), match[2], int(match[3]), match[4]
            new = f"output_blocks.{block * (layers + 1) + number}.{'1' if kind == 'attentions' else '0'}.{rest}"
            if kind == "upsamplers":
                behind = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in state else 1
                new = f"output_blocks.{block * (layers + 1) + layers}.{behind}.{rest}"
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            at = 1 if match[1] == "attentions" else 2 * int(match[2])
            new = f"middle_block.{at}.{match[3]}"
        if ".resnets." in name:
            for theirs, ours in _RESNET:
                new = re.sub(rf"\.{theirs}\.", f".{ours}.", new)
        out[new] = tensor
    return out


def _ended(name: str) -> str:
    for theirs, ours in _UNET_ENDS:
        if name.startswith(f"{theirs}."):
            return name.replace(theirs, ours)
    return name


def open_clip(state: Tensors) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection's tensors by OpenCLIP's names."""
    out: dict[str, Tensor] = {"text_projection": state["text_projection.weight"].T}
    for name, tensor in state.items():
        if name == "text_projection.weight" or re.search(r"self_attn\.[qkv]_proj", name):
            continue
        new = name
        for theirs, ours in _OPEN_CLIP:
            new = new.replace(theirs, ours)
        out[new] = tensor
    for number in {name.split(".")[3] for name in state if name.startswith("text_model.encoder.layers.")}:
        layer, new = f"text_model.encoder.layers.{number}.self_attn", f"transformer.resblocks.{number}.attn"
        for ending in ("weight", "bias"):
            joined = torch.cat([state[f"{layer}.{part}_proj.{ending}"] for part in "qkv"])
            out[f"{new}.in_proj_{ending}"] = joined
    return out


def write_laid_out(file: Path, tensors: Tensors) -> tuple[Path, dict[str, Tensor]]:
    """Q8_0 as city96's converter lays SDXL out: pieces of 256 values. Returns what it means, too."""
    writer, meant = gguf.GGUFWriter(file, "sdxl"), {}
    for name, tensor in tensors.items():
        values, kind = tensor.float().numpy(), gguf.GGMLQuantizationType.Q8_0
        if tensor.ndim < 2 or tensor.numel() < 512 or tensor.numel() % 256:
            writer.add_tensor(name, values)
            meant[name] = tensor
            continue
        if tensor.shape[-1] % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            values = values.reshape(-1, 256)
        blocks = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        unpacked = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).half()  # diffusers multiplies in float16
        meant[name] = unpacked.float().reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, meant
