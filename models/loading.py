"""From a checkpoint's name to its modules on a device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
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
from models.fusion import fuse
from models.memory import Offload
from models.placement import place
from models.quantization import quantize
from models.random_weights import random_components
from models.registry import ModelSpec
from models.tuning import PLAIN, Tuning

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
    offload: Offload = "none",
    tuning: Tuning = PLAIN,
) -> FluxComponents:
    """Load one checkpoint onto the device.

    Args: dtype: None takes the device's own. cache: parts that other checkpoints brought along.
        offload: "text" leaves the text encoders on the host (see `models.placement`).
        tuning: what of it concerns the weights is done here.
    Raises: LoadError with one sentence that says what to do.
    """
    started = time.monotonic()
    dtype = dtype or accelerator.default_dtype
    if spec.source.startswith("random:"):
        components = random_components(spec, accelerator.device, dtype, progress, offload)
    else:
        # What is to be shrunk is shrunk on the host: the device may have no room for it before.
        homes = {} if quantization == "none" else {"transformer": torch.device("cpu")}
        parts = _Parts(locate(spec), accelerator.device, dtype, progress, cache or PartCache(), offload, homes)
        components = _load_folder(spec, parts)
    tuning = tuning.resolved(accelerator.kind)
    fuse(components.transformer, qkv=bool(tuning.fuse_qkv), mlp=bool(tuning.fuse_mlp))
    if tuning.vae_channels_last:
        components.vae.to(memory_format=torch.channels_last)
    if tuning.compile_vae:
        components.vae.decoder.compile(dynamic=True)
    progress("quantization", 0.99)
    quantize(components.transformer, quantization, accelerator)
    components.transformer.to(accelerator.device)
    accelerator.mark().wait()  # prompts are encoded on another stream, which does not wait for this one
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


class _Parts:
    """Loads the parts of one folder, each to where it belongs, and reports by the bytes that are there.

    Args: homes: where parts go that do not go to `device`.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        cache: PartCache,
        offload: Offload,
        homes: Mapping[str, torch.device],
    ) -> None:
        check_parts(folder, PARTS)
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.shared: set[str] = set()
        self._progress = progress
        self._cache = cache
        self._offload = offload
        self._homes = homes
        self._sizes = {name: _weights_size(folder / name) for name in PARTS}
        self._done = 0

    def load(self, name: str, kind: Any, **dtype: torch.dtype) -> Any:
        """The module of one part. Args: dtype: under the name that `kind.from_pretrained` gives it."""
        total, reported = sum(self._sizes.values()), -1.0

        def moved(fraction: float) -> None:
            nonlocal reported
            overall = 0.98 * (self._done + fraction * self._sizes[name]) / total
            if overall - reported >= 0.01:
                reported = overall
                self._progress(name.replace("_", " "), overall)

        def build() -> nn.Module:
            module = kind.from_pretrained(self.folder / name, use_safetensors=True, local_files_only=True, **dtype)
            return place(name, module, self._homes.get(name, self.device), self.dtype, self._offload, moved)

        moved(0.0)
        module, was_here = self._cache.get(self.folder / name, self.dtype, build)
        self._done += self._sizes[name]
        self.shared |= {name} if was_here else set()
        return module


def _weights_size(part: Path) -> int:
    return sum(file.stat().st_size for file in part.glob("*.safetensors"))


def _load_folder(spec: ModelSpec, parts: _Parts) -> FluxComponents:
    folder, dtype = parts.folder, parts.dtype
    try:
        return FluxComponents(
            spec=spec,
            text_encoder=parts.load("text_encoder", CLIPTextModel, dtype=dtype),
            text_encoder_2=parts.load("text_encoder_2", T5EncoderModel, dtype=dtype),
            vae=parts.load("vae", AutoencoderKL, torch_dtype=dtype),
            transformer=parts.load("transformer", FluxTransformer2DModel, torch_dtype=dtype),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            sigma_config=dict(FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler")),
            safety=_load_safety(parts),
            shared=frozenset(parts.shared),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        if isinstance(exc, torch.OutOfMemoryError):
            raise LoadError(
                f"model {spec.name} does not fit into the memory of {parts.device}; "
                "`fluxserve doctor` says which of --quantization and --offload make it fit."
            ) from exc
        raise LoadError(f"model {spec.name}: {folder.name} is not a loadable FLUX pipeline ({exc}).") from exc


def _pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    module: nn.Module = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return module


def _load_safety(parts: _Parts) -> SafetyModel | None:
    """The checkpoint's own picture checker, in either layout, or None.

    CompVis: `safety_checker/` (StableDiffusionSafetyChecker) + `feature_extractor/`.
    Classifier: `safety_checker/` with a `preprocessor_config.json` beside its weights.
    """
    folder, dtype = parts.folder, parts.dtype
    part = folder / "safety_checker"
    if not (part / "config.json").is_file():
        return None
    check_weights(part)
    config = json.loads((part / "config.json").read_text())
    if "StableDiffusionSafetyChecker" in config.get("architectures", ()):
        model = _pretrained(StableDiffusionSafetyChecker, part, dtype)
        processor = AutoImageProcessor.from_pretrained(folder / "feature_extractor")
    else:
        model = _pretrained(AutoModelForImageClassification, part, dtype)
        processor = AutoImageProcessor.from_pretrained(part)
    return SafetyModel(place("safety_checker", model, parts.device, dtype, "none"), processor)
