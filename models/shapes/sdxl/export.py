"""Write sdxl-shapes as two stock StableDiffusionXLPipeline folders: with Playground v2.5's schedule and Lightning's."""

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

from models.shapes.export import forget_paths, link_parts, size_of
from models.shapes.sdxl.text import SdxlText
from models.shapes.sdxl.unet import lightning_scheduler, playground_scheduler

_OF_BASE = ("vae", "text_encoder", "tokenizer", "safety_checker")
_OWN = ("unet", "text_encoder_2")


def export_sdxl(folder: Path, unet: UNet2DConditionModel, text: SdxlText, base: Path) -> int:
    """Save `folder` with Playground's schedule, and `folder`-lightning, which links to it; returns bytes of the first.

    The UNet is stored in bfloat16, the text encoder in float32, as in the folder of flux-shapes and for its reason.
    Args: base: that folder, whose codec, first text encoder, tokenizer and safety classifier are shared.
    """
    link_parts(folder, base, _OF_BASE)
    copy.deepcopy(unet).to(torch.bfloat16).save_pretrained(folder / "unet")
    text.second.save_pretrained(folder / "text_encoder_2")
    lightning = folder.with_name(f"{folder.name}-lightning")
    link_parts(lightning, base, _OF_BASE)
    link_parts(lightning, folder, _OWN)
    for each, scheduler in ((folder, playground_scheduler()), (lightning, lightning_scheduler())):
        (each / "tokenizer_2").unlink(missing_ok=True)
        (each / "tokenizer_2").symlink_to("tokenizer", target_is_directory=True)
        scheduler.save_pretrained(each / "scheduler")
        StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(base / "vae"),
            text_encoder=text.clip,
            text_encoder_2=text.second,
            tokenizer=text.tokenizer,
            tokenizer_2=text.tokenizer,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=False,  # an empty text is what training leaves out captions with
            add_watermarker=False,
        ).save_config(each)
    forget_paths(folder)
    forget_paths(lightning)
    return size_of(folder)
