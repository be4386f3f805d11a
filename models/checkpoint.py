"""One FLUX.1 checkpoint's folder, checked in all its parts before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPTextModel,
    PreTrainedModel,
    T5EncoderModel,
)

from models.building import build, kept_in_float32, on_meta
from models.checkpoint_files import LoadError
from models.files.folder import check_folder, config
from models.files.headers import TensorEntry, read_header
from models.files.weights import weight_files
from models.reading import mapped, read

KINDS: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "vae": AutoencoderKL,
    "transformer": FluxTransformer2DModel,
}
"""The parts of every FLUX.1 checkpoint and their classes, in the order of loading."""
_OTHERS = ("tokenizer", "tokenizer_2", "scheduler")
SAFETY = "safety_checker"
_OFFLINE = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Part:
    """A folder of weights with its class."""

    folder: Path
    kind: Any
    config: Any
    files: tuple[Path, ...]
    header: Mapping[str, TensorEntry]

    @property
    def label(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def file_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """What it takes in memory, about: a few parameters may stay in float32."""
        return sum(math.prod(entry.shape) for entry in self.header.values()) * dtype.itemsize

    def check(self) -> None:
        """Its tensors are those that its configuration announces. Raises: LoadError."""
        made(self.label, lambda: build(self.label, self.kind, self.config, on_meta(self.header), torch.float32))

    def check_numbers(self) -> None:
        """Reads every weight: for parts where one that is not a number makes every picture black. Raises: LoadError."""
        for name, tensor in mapped(self.files).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise LoadError(f"{self.label} holds weights that are not numbers ({name}); fetch it again.")

    def load(
        self, dtype: torch.dtype, in_memory: bool, read_bytes: Callable[[int], None] = lambda count: None
    ) -> nn.Module:
        """Its module on the host. Args: in_memory: read, else mapped (see `models.reading`). Raises: LoadError."""
        return build(self.label, self.kind, self.config, self._tensors(dtype, in_memory, read_bytes), dtype)

    def _tensors(self, dtype: torch.dtype, in_memory: bool, read_bytes: Callable[[int], None]) -> dict[str, Tensor]:
        if not in_memory:
            return mapped(self.files)

        def dtype_of(name: str) -> torch.dtype:
            return torch.float32 if kept_in_float32(self.kind, name, dtype) else dtype

        return read(self.files, dtype_of, read_bytes)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds besides weights, and the parts that hold them."""

    folder: Path
    pipeline: str
    parts: Mapping[str, Part]
    tokenizer: Any
    tokenizer_2: Any
    sigma_config: Mapping[str, Any]
    image_processor: Any
    """Of the safety checker; None if there is none."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Everything of a folder but its weights; they are as announced and fit together. Raises: LoadError."""
    pipeline = check_folder(folder, tuple(KINDS), _OTHERS)
    parts = {name: open_part(folder / name, kind) for name, kind in KINDS.items()}
    processor = None
    if (folder / SAFETY / "config.json").is_file():
        parts[SAFETY], processor = _safety(folder)
    for part in parts.values():
        part.check()
    parts["vae"].check_numbers()
    sigmas = made(f"{folder.name}/scheduler", lambda: FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler"))
    checkpoint = Checkpoint(
        folder,
        pipeline,
        parts,
        tokenizer=_tokenizer(folder / "tokenizer"),
        tokenizer_2=_tokenizer(folder / "tokenizer_2"),
        sigma_config=dict(sigmas),
        image_processor=processor,
    )
    _check_together(checkpoint)
    return checkpoint


def open_part(folder: Path, kind: Any) -> Part:
    """A folder of weights whose configuration and headers are sound.

    Args: kind: a model class, or one of transformers' Auto classes, which the configuration then decides.
    Raises: LoadError.
    """
    config(folder)
    label = f"{folder.parent.name}: the config.json of the part {folder.name}"
    if hasattr(kind, "_model_mapping"):
        values = made(label, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
        kind = made(label, lambda: kind._model_mapping[type(values)])
    elif issubclass(kind, PreTrainedModel):
        values = made(label, lambda: kind.config_class.from_pretrained(folder, **_OFFLINE))
    else:
        values = made(label, lambda: kind.load_config(folder, local_files_only=True))
    files = weight_files(folder)
    header = {name: entry for file in files for name, entry in read_header(file).items()}
    return Part(folder, kind, values, files, header)


def image_processor(folder: Path) -> Any:
    """What prepares pictures for a model. Raises: LoadError."""
    label = f"{folder.parent.name}/{folder.name}"
    if not (folder / "preprocessor_config.json").is_file():
        raise LoadError(f"{label} has no preprocessor_config.json; fetch the checkpoint again.")
    return made(label, lambda: AutoImageProcessor.from_pretrained(folder, **_OFFLINE))


def _safety(folder: Path) -> tuple[Part, Any]:
    """The checkpoint's own picture checker, in either layout, and what prepares pictures for it.

    CompVis: `safety_checker/` (StableDiffusionSafetyChecker) + `feature_extractor/`.
    Classifier: `safety_checker/` with a `preprocessor_config.json` beside its weights.
    """
    part = folder / SAFETY
    is_concepts = "StableDiffusionSafetyChecker" in (config(part).get("architectures") or ())
    processor = image_processor(folder / "feature_extractor" if is_concepts else part)
    return open_part(part, StableDiffusionSafetyChecker if is_concepts else AutoModelForImageClassification), processor


def _tokenizer(folder: Path) -> Any:
    return made(
        f"{folder.parent.name}: the part {folder.name}", lambda: AutoTokenizer.from_pretrained(folder, **_OFFLINE)
    )


def _check_together(checkpoint: Checkpoint) -> None:
    """The parts fit one another. Raises: LoadError."""
    name = checkpoint.folder.name
    clip, t5 = checkpoint.parts["text_encoder"].config, checkpoint.parts["text_encoder_2"].config
    transformer, vae = checkpoint.parts["transformer"].config, checkpoint.parts["vae"].config
    for tokenizer, rows, part in (
        (checkpoint.tokenizer, clip.vocab_size, "tokenizer"),
        (checkpoint.tokenizer_2, t5.vocab_size, "tokenizer_2"),
    ):
        if len(tokenizer) > rows:
            raise LoadError(
                f"{name}: the part {part} has {len(tokenizer)} words, but the text encoder's table has {rows} rows; "
                "take both from one checkpoint."
            )
    widths = (
        ("text_encoder", clip.hidden_size, "pooled_projection_dim"),
        ("text_encoder_2", t5.d_model, "joint_attention_dim"),
    )
    for part, width, wanted in widths:
        if width != transformer[wanted]:
            raise LoadError(
                f"{name}: the part {part} gives vectors of width {width}, but the transformer takes "
                f"{transformer[wanted]}; take both from one checkpoint."
            )
    channels, latents = transformer["in_channels"], 4 * vae["latent_channels"]
    if channels != latents and checkpoint.pipeline == "FluxPipeline":
        raise LoadError(
            f"{name}: the transformer takes {channels} channels, but text to image has {latents}; "
            "if it is a Fill or Control checkpoint, its model_index.json must say so."
        )


def made(label: str, make: Callable[[], Any]) -> Any:
    """What a library makes of files that somebody else wrote: whatever it raises, they are at fault."""
    try:
        return make()
    except LoadError:
        raise
    except Exception as exc:
        reason = str(exc).strip() or type(exc).__name__
        if "trust_remote_code" in reason or "custom code" in reason:
            raise LoadError(f"{label} brings code of its own, which is never run.") from exc
        first = reason.splitlines()[0][:300]
        raise LoadError(f"{label} cannot be used ({first}); fetch the checkpoint again.") from exc
