"""What a set of tensor names is, where it is not what diffusers and transformers write. No torch."""

from __future__ import annotations

from collections.abc import Iterable

_SDXL = "SDXL, which is served whole (--model FILE) or as the UNet of a folder (--model SDXL --transformer FILE)"
_DIFFUSION = "Stable Diffusion 1 or 2, which are other architectures"
_SIGNS: tuple[tuple[str, str], ...] = (
    ("lora_unet_", "a LoRA that was not merged; serve the base model and give the LoRA with each request"),
    (".lora_A.", "a LoRA that was not merged; serve the base model and give the LoRA with each request"),
    (".lora_down.", "a LoRA that was not merged; serve the base model and give the LoRA with each request"),
    ("_lora", "a LoRA that was not merged; serve the base model and give the LoRA with each request"),
    ("controlnet_", "a ControlNet, which is served from a folder with its config.json"),
    ("double_stream_modulation_img.", "a part of FLUX.2's transformer"),
    ("distilled_guidance_layer.", "Chroma, which is another architecture"),
    ("joint_blocks.", "Stable Diffusion 3, which is another architecture"),
    ("label_emb.", _SDXL),
    ("add_embedding.", _SDXL),
    ("input_blocks.", _DIFFUSION),
    ("down_blocks.0.attentions.", _DIFFUSION),
    ("model.diffusion_model.", "ComfyUI's layout"),
    ("double_blocks.", "Black Forest Labs' layout"),
    ("decoder.up.0.block.", "a VAE in the layout of latent diffusion"),
)
_SCALES = ("weight_scale", "scale_weight", "scaled_fp8", "input_scale", "scale_input", "comfy_quant")


def foreign(keys: Iterable[str]) -> str | None:
    """Whose tensors have such names, in words; None if it is not known."""
    names = list(keys)
    return next((words for sign, words in _SIGNS if any(sign in name for name in names)), None)


def described(keys: Iterable[str]) -> str | None:
    """What tensors of these names are, in words; None if the names are not known to be foreign."""
    names = list(keys)
    if (whose := foreign(names)) is not None:
        return whose
    if any(name.rpartition(".")[2] in _SCALES for name in names):
        return "float8 weights with scales beside them"
    return None
