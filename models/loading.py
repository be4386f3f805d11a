"""From a checkpoint's name to its modules on a device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPTextModel,
    T5EncoderModel,
)

from models.accelerator import Accelerator
from models.checkpoint_files import LoadError, check_parts, check_weights, locate
from models.components import FluxComponents, SafetyModel
from models.quantization import quantize
from models.random_weights import random_components
from models.registry import ModelSpec

Progress = Callable[[str, float], None]
"""Called with a stage in words and the fraction done, in [0, 1]."""

PARTS = ("text_encoder", "text_encoder_2", "vae", "transformer")


def silence_libraries() -> None:
    """Keep the libraries' notices and bars off the terminal: we report loading ourselves, and faults as LoadError."""
    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


def load(
    spec: ModelSpec,
    accelerator: Accelerator,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    progress: Progress = lambda stage, fraction: None,
    cache: PartCache | None = None,
) -> FluxComponents:
    """Load one checkpoint onto the device.

    Args: dtype: None takes the device's own. cache: parts that other checkpoints brought along.
    Raises: LoadError with one sentence that says what to do.
    """
    started = time.monotonic()
    dtype = dtype or accelerator.default_dtype
    if spec.source.startswith("random:"):
        components = random_components(spec, accelerator.device, dtype, progress)
    else:
        components = _load_folder(spec, locate(spec), accelerator.device, dtype, progress, cache or PartCache())
    progress("quantization", 0.99)
    quantize(components.transformer, quantization, accelerator)
    progress("loaded", 1.0)
    return replace(components, load_s=time.monotonic() - started)


class PartCache:
    """Loaded parts by the identity of their files, so that checkpoints share text encoders and VAE.

    Hugging Face snapshots link equal files to one blob, so equal parts of two repos have equal keys.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[Any, ...], nn.Module] = {}

    def get(self, part: Path, dtype: torch.dtype, build: Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
        """The module of this part and whether it was here already."""
        key = (dtype, (part / "config.json").read_bytes(), *_identity(part))
        if key in self._parts:
            return self._parts[key], True
        self._parts[key] = build()
        return self._parts[key], False

    def keep_only(self, used: set[int]) -> None:
        """Forget parts whose `id` no checkpoint uses any more."""
        self._parts = {key: module for key, module in self._parts.items() if id(module) in used}


def _identity(part: Path) -> tuple[tuple[int, int, int], ...]:
    """Device, inode and size of every weight file, links followed."""
    stats = [file.stat() for file in sorted(part.glob("*.safetensors"))]
    return tuple((stat.st_dev, stat.st_ino, stat.st_size) for stat in stats)


def _load_folder(
    spec: ModelSpec, folder: Path, device: torch.device, dtype: torch.dtype, progress: Progress, cache: PartCache
) -> FluxComponents:
    check_parts(folder, PARTS)
    sizes = {part: sum(file.stat().st_size for file in (folder / part).glob("*.safetensors")) for part in PARTS}
    shared: set[str] = set()
    done = 0

    def part(name: str, build: Callable[[], nn.Module]) -> Any:
        nonlocal done
        progress(name.replace("_", " "), 0.98 * done / sum(sizes.values()))
        module, was_here = cache.get(folder / name, dtype, lambda: _frozen(build(), device, dtype))
        done += sizes[name]
        shared.update({name} if was_here else ())
        return module

    weights = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        return FluxComponents(
            spec=spec,
            text_encoder=part("text_encoder", lambda: _pretrained(CLIPTextModel, folder / "text_encoder", dtype)),
            text_encoder_2=part(
                "text_encoder_2", lambda: _pretrained(T5EncoderModel, folder / "text_encoder_2", dtype)
            ),
            vae=part("vae", lambda: AutoencoderKL.from_pretrained(folder / "vae", **weights)),
            transformer=part(
                "transformer", lambda: FluxTransformer2DModel.from_pretrained(folder / "transformer", **weights)
            ),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            sigma_config=dict(FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler")),
            safety=_load_safety(folder, device, dtype, progress),
            shared=frozenset(shared),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        if isinstance(exc, torch.OutOfMemoryError):
            raise LoadError(f"model {spec.name} does not fit into the memory of {device}.") from exc
        raise LoadError(f"model {spec.name}: {folder.name} is not a loadable FLUX pipeline ({exc}).") from exc


def _pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    module: nn.Module = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return module


def _frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _load_safety(folder: Path, device: torch.device, dtype: torch.dtype, progress: Progress) -> SafetyModel | None:
    """The checkpoint's own picture checker, in either layout, or None.

    CompVis: `safety_checker/` (StableDiffusionSafetyChecker) + `feature_extractor/`.
    Classifier: `safety_checker/` with a `preprocessor_config.json` beside its weights.
    """
    part = folder / "safety_checker"
    if not (part / "config.json").is_file():
        return None
    progress("safety checker", 0.98)
    check_weights(part)
    config = json.loads((part / "config.json").read_text())
    if "StableDiffusionSafetyChecker" in config.get("architectures", ()):
        model = _pretrained(StableDiffusionSafetyChecker, part, dtype)
        processor = AutoImageProcessor.from_pretrained(folder / "feature_extractor")
    else:
        model = _pretrained(AutoModelForImageClassification, part, dtype)
        processor = AutoImageProcessor.from_pretrained(part)
    return SafetyModel(_frozen(model, device, dtype), processor)
