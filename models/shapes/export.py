"""Write trained parts as a stock diffusers folder, and check that the stock pipeline opens it."""

import copy
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxPipeline, FluxTransformer2DModel
from transformers import DepthAnythingForDepthEstimation

from models.shapes.flow import new_scheduler
from models.shapes.siblings.depth import new_depth_processor
from models.shapes.siblings.redux import ReduxModel, new_processor
from models.shapes.text import Encoders

Module = TypeVar("Module", bound=torch.nn.Module)
_TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_SHARED_PARTS = ("scheduler", "vae", *_TEXT_PARTS, "safety_checker")


def export(folder: Path, transformer: FluxTransformer2DModel, vae: AutoencoderKL, encoders: Encoders) -> int:
    """Save everything as FluxPipeline expects it; returns the folder's size in bytes.

    Transformer and VAE are stored in bfloat16. The encoders stay float32: transformers 5 loads what is stored,
    diffusers loads float32 unless told otherwise, and a plain `from_pretrained(folder)` must not mix the two.
    """
    pipeline = FluxPipeline(
        scheduler=new_scheduler(),
        vae=_halved(vae),
        text_encoder=encoders.clip,
        tokenizer=encoders.clip_tokenizer,
        text_encoder_2=encoders.t5,
        tokenizer_2=encoders.t5_tokenizer,
        transformer=_halved(transformer),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    forget_paths(folder)
    return size_of(folder)


def export_sibling(
    folder: Path,
    transformer: FluxTransformer2DModel,
    shared: Path,
    pipeline: str = "FluxPipeline",
    *,
    like: Path | None = None,
) -> int:
    """A second pipeline that differs from `shared` in its transformer only: the other parts are links to it.

    A worker that serves both recognises linked parts and holds them once.
    Args: pipeline: the diffusers class that opens the folder. like: a sibling with the same transformer, to link to.
    """
    link_parts(folder, shared, _SHARED_PARTS)
    index = json.loads((shared / "model_index.json").read_text()) | {"_class_name": pipeline}
    known = inspect.signature(getattr(diffusers, pipeline).__init__).parameters
    kept = {name: value for name, value in index.items() if name.startswith("_") or name in known}
    (folder / "model_index.json").write_text(json.dumps(kept, indent=2) + "\n")
    if like is None:
        _halved(transformer).save_pretrained(folder / "transformer")
    else:
        link_parts(folder, like, ("transformer",))
    forget_paths(folder)
    return size_of(folder)


def export_controlnet(folder: Path, controlnet: FluxControlNetModel) -> None:
    """A ControlNet as FluxControlNetModel.from_pretrained opens it, in bfloat16."""
    _halved(controlnet).save_pretrained(folder)
    forget_paths(folder)


def export_estimator(folder: Path, estimator: DepthAnythingForDepthEstimation) -> None:
    """A depth estimator and its processor as transformers opens them, in float32."""
    estimator.save_pretrained(folder)
    new_depth_processor().save_pretrained(folder)
    forget_paths(folder)


def export_redux(folder: Path, model: ReduxModel, shared: Path) -> int:
    """What FluxPriorReduxPipeline opens: image encoder, embedder and processor; the text parts are links.

    In float32, as the text encoders and for their reason.
    """
    link_parts(folder, shared, _TEXT_PARTS)
    model.image_encoder.save_pretrained(folder / "image_encoder")
    model.image_embedder.save_pretrained(folder / "image_embedder")
    new_processor().save_pretrained(folder / "feature_extractor")
    index = json.loads((shared / "model_index.json").read_text())
    kept = {name: index[name] for name in ("_diffusers_version", *_TEXT_PARTS)}
    own = {
        "image_encoder": ["transformers", "SiglipVisionModel"],
        "image_embedder": ["flux", "ReduxImageEncoder"],
        "feature_extractor": ["transformers", "SiglipImageProcessor"],
    }
    index = {"_class_name": "FluxPriorReduxPipeline"} | kept | own
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    forget_paths(folder)
    return size_of(folder)


def link_parts(folder: Path, shared: Path, parts: Iterable[str]) -> None:
    """Make some parts of a pipeline folder relative links into another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (folder / part).unlink(missing_ok=True)
        (folder / part).symlink_to(os.path.relpath(shared / part, folder), target_is_directory=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder` that are not links."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _halved(module: Module) -> Module:
    """A bfloat16 copy; the original keeps training in float32."""
    return copy.deepcopy(module).to(torch.bfloat16)


def forget_paths(folder: Path) -> None:
    """Drop the paths of this machine that saving leaves in the configs."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            path.write_text(json.dumps(config, indent=2) + "\n")
