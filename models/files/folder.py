"""What a checkpoint's folder says it is: pipeline, parts, configurations. No torch, nothing of it is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import LoadError

FLUX1_PIPELINES = frozenset(
    f"Flux{kind}Pipeline"
    for kind in (
        "", "Img2Img", "Inpaint", "Fill", "Kontext", "KontextInpaint", "Control", "ControlImg2Img", "ControlInpaint",
        "ControlNet", "ControlNetImg2Img", "ControlNetInpaint",
    )
)  # fmt: skip
"""Pipelines over FLUX.1's transformer, text encoders and VAE."""
FLUX2_DEV = "Flux2Pipeline"
FLUX2_KV = "Flux2KleinKVPipeline"
"""Of a [klein] that was trained to pass pictures to look at once (`pipelines.families.flux2.references`)."""
FLUX2_PIPELINES = frozenset({FLUX2_DEV, FLUX2_KV, "Flux2KleinPipeline", "Flux2KleinInpaintPipeline"})
"""Pipelines over FLUX.2's transformer and VAE, and Mistral ([dev]) or Qwen3 ([klein])."""
FLUX3_PIPELINES = frozenset({"Flux3ModularPipeline", "Flux3DistilledModularPipeline"})
"""Pipelines over FLUX.3's transformer, FLUX.2's VAE and Qwen3-VL."""
INDEXES = ("model_index.json", "modular_model_index.json")
"""What tells a pipeline's class and parts; modular pipelines are saved with the second alone."""
SDXL_PIPELINES = frozenset(f"StableDiffusionXL{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint"))
"""Pipelines over SDXL's UNet, two CLIPs and VAE."""
OTHERS = ("tokenizer", "tokenizer_2", "scheduler")
"""Folders of every FLUX.1 and SDXL checkpoint beside those with weights."""
_TORCHAO = frozenset(
    (
        "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "IntxWeightOnlyConfig",
        "Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig",
    )
)  # fmt: skip
"""Its ways of packing that leave plain numbers and scales; others are laid out for one kind of card."""


LONGEST_PATH = 4096


def part_in(folder: Path, name: str) -> Path:
    """The folder of a checkpoint's part, or a file of one.

    What lies in another checkpoint is a link to it or, where files cannot be links (a wheel, git on some systems), a
    file that holds the link's text.
    """
    part = folder / name
    try:
        if not part.is_file() or part.stat().st_size > LONGEST_PATH:
            return part
        text = part.read_text()
        return (folder / text).resolve() if text and (folder / text).exists() else part
    except (OSError, ValueError):  # no text, or none that can be a path
        return part


def index_in(folder: Path) -> Path:
    """The file that tells what a folder is for; the first name where there is none."""
    return next((folder / name for name in INDEXES if (folder / name).is_file()), folder / INDEXES[0])


def is_distilled(index: dict[str, Any]) -> bool:
    """Whether a FLUX.2 draws without a second, unprompted forward. Args: index: its model_index.json.

    [dev] takes guidance as an input, and [klein] KV knows none; neither says so.
    """
    return index.get("_class_name") in (FLUX2_DEV, FLUX2_KV) or bool(index.get("is_distilled", False))


def check_folder(
    folder: Path, parts: tuple[str, ...], others: tuple[str, ...], pipelines: frozenset[str] = FLUX1_PIPELINES
) -> str:
    """The pipeline class of a folder. Its parts have a readable config.json, the others are there.

    Args: parts: folders with weights. others: tokenizers and the scheduler. pipelines: those it may be for.
    Raises: LoadError naming the part.
    """
    if not index_in(folder).is_file():
        raise LoadError(f"{folder.name}: no model_index.json, so this is not a diffusers pipeline folder.")
    pipeline = check_pipeline(folder, pipelines)
    for part in parts:
        config(part_in(folder, part))
    for other in others:
        place = part_in(folder, other)
        if not place.is_dir() or not any(place.iterdir()):
            raise LoadError(f"{folder.name}: the part {other} is missing; fetch the checkpoint again.")
    return pipeline


def check_pipeline(folder: Path, pipelines: frozenset[str] = FLUX1_PIPELINES) -> str:
    """The pipeline class that model_index.json names. Raises: LoadError if it is none of `pipelines`."""
    index = index_in(folder)
    pipeline = _object(index).get("_class_name")
    if not isinstance(pipeline, str):
        raise LoadError(f"{folder.name}/{index.name} names no pipeline of diffusers; code of its own is never run.")
    if pipeline not in pipelines:
        raise LoadError(
            f"{folder.name} is a checkpoint for {pipeline[:100]}, another architecture; "
            "FLUX.1's are served (FluxPipeline and its kin), FLUX.2's (Flux2Pipeline, Flux2KleinPipeline), FLUX.3's "
            "(Flux3ModularPipeline and its distilled kin), and SDXL's (StableDiffusionXLPipeline)."
        )
    return pipeline


def config(part: Path) -> dict[str, Any]:
    """A part's config.json, with weights in a form that can be read. Raises: LoadError."""
    label = f"{part.parent.name}: the part {part.name}"
    if not (part / "config.json").is_file():
        raise LoadError(f"{label} has no config.json; fetch the checkpoint again.")
    values = _object(part / "config.json")
    foreign = _foreign_packing(values.get("quantization_config"))
    if foreign is not None:
        raise LoadError(
            f"{label} holds weights packed by {foreign[:80]}, which are not served; give the checkpoint in bfloat16, "
            "float8, GGUF, NF4 or int8, or --quantization fp8 to make it small."
        )
    return values


def _foreign_packing(packed: object) -> str | None:
    """What packed the weights in a form that cannot be read; None if there is no such thing."""
    if not packed:
        return None
    if not isinstance(packed, dict):
        return "a method"
    method = str(packed.get("quant_method", "an unknown method"))
    if method in ("bitsandbytes", "quanto") or "bnb_4bit_quant_type" in packed:
        return None
    if method != "torchao":
        return method
    kind = packed.get("quant_type")
    kind = kind.get("default") if isinstance(kind, dict) else kind
    name = str(kind.get("_type") if isinstance(kind, dict) else kind)
    return None if name in _TORCHAO else f"torchao's {name}"


def _object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises: LoadError."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as exc:
        raise LoadError(f"{file.parent.name}/{file.name} is damaged; fetch the checkpoint again.") from exc
    if not isinstance(values, dict):
        raise LoadError(f"{file.parent.name}/{file.name} is damaged: no JSON object; fetch the checkpoint again.")
    return values
