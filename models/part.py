"""One part of a checkpoint: a module's class, its configuration, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

# By its own module: under its other name older versions refuse it where torchvision is not installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from models.adapters.merging import check_merge
from models.building import build, kept_in_float32, on_meta
from models.errors import LoadError
from models.files.folder import config
from models.files.headers import TensorEntry, read_header
from models.files.weights import weight_files
from models.nf4 import WIDE, read_states, with_nf4
from models.packed import Stored
from models.reading import mapped, read
from models.registry import Family
from models.scaled import BESIDE, with_scaled
from models.single.gguf import t5_tokenizer
from models.single.header import is_packed, loaded_bytes
from models.single.layout import SCALES, with_scales

_OFFLINE = {"trust_remote_code": False, "local_files_only": True}

_CORES = (FluxTransformer2DModel, Flux2Transformer2DModel, Flux3Transformer2DModel, UNet2DConditionModel)
Convert = Callable[[dict[str, Stored]], dict[str, Stored]]
"""From the names of a file to those of the module."""


@dataclass(frozen=True)
class Part:
    """A part that was looked at, not read.

    Args:
        label: in words, for errors.
        kind: a model class of diffusers or transformers.
        config: what `kind` is made from.
        header: its tensors as they lie in `files`; inside a larger file their names begin with `prefix`.
        convert: gives them, without the prefix, the names that the module has.
        adapter: a LoRA's file that the module is loaded with, and for which family it must be made.
    """

    label: str
    kind: Any
    config: Any
    files: tuple[Path, ...]
    header: Mapping[str, TensorEntry]
    prefix: str = ""
    convert: Convert = dict
    adapter: tuple[Path, Family] | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(entry.stop - entry.start for entry in self.header.values())

    @property
    def keeps_packed(self) -> bool:
        """Whether weights stay in the form of the file: those of what every step runs, most of a checkpoint."""
        return self.kind in _CORES

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """What it takes in memory, about: a few parameters may stay in float32."""
        own = sum(loaded_bytes(entry, dtype.itemsize, self.keeps_packed) for entry in self.header.values())
        if self.adapter is None or not any(map(is_packed, self.header.values())):
            return own
        return own + self.adapter[0].stat().st_size

    def check(self) -> None:
        """Its tensors are those that its configuration announces. Raises: LoadError."""
        tensors = on_meta(self.header) | read_states(self.files, self.header)
        module = made(self.label, lambda: self._build(tensors, torch.float32))
        if self.adapter is not None:
            check_merge(*self.adapter, module)

    def check_numbers(self) -> None:
        """Reads every weight. Raises: LoadError (`check_numbers`)."""
        check_numbers(self.label, {name: stored for name, stored in mapped(self.files).items() if name in self.header})

    def load(
        self, dtype: torch.dtype, in_memory: bool, read_bytes: Callable[[int], None] = lambda count: None
    ) -> nn.Module:
        """Its module on the host. Args: in_memory: read, else mapped (see `models.reading`). Raises: LoadError."""
        return self._build(self._tensors(dtype, in_memory, read_bytes), dtype)

    def _build(self, tensors: dict[str, Stored], dtype: torch.dtype) -> nn.Module:
        converted = self.convert(  # nothing here may hold on to what packed weights were made from
            in_stored_forms({name.removeprefix(self.prefix): tensors.pop(name) for name in list(tensors)}, self.label)
        )
        return build(self.label, self.kind, self.config, converted, dtype, self.keeps_packed)

    def _tensors(self, dtype: torch.dtype, in_memory: bool, read_bytes: Callable[[int], None]) -> dict[str, Stored]:
        if not in_memory:
            return {name: stored for name, stored in mapped(self.files).items() if name in self.header}

        def dtype_of(name: str) -> torch.dtype | None:
            if name.endswith((*SCALES, *WIDE, *BESIDE)):
                return None
            return torch.float32 if kept_in_float32(self.kind, name, dtype) else dtype

        return read(self.files, self.header, dtype_of, read_bytes)


def check_numbers(label: str, tensors: Mapping[str, Stored]) -> None:
    """For parts where one weight that is not a number makes every picture black. Raises: LoadError."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise LoadError(f"{label} holds weights that are not numbers ({name}); fetch it again.")


def in_stored_forms(tensors: dict[str, Stored], label: str) -> dict[str, Stored]:
    """Packed weights in place of the tensors that they are stored as, whatever packed them. Raises: LoadError."""
    return with_nf4(with_scales(with_scaled(tensors, label), label), label)


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
        values.__dict__.pop("quantization_config", None)  # we unpack ourselves
    else:
        values = dict(made(label, lambda: kind.load_config(folder, local_files_only=True)))
        values.pop("quantization_config", None)
    files = weight_files(folder)
    header = {name: entry for file in files for name, entry in read_header(file).items()}
    return Part(f"{folder.parent.name}/{folder.name}", kind, values, files, header)


def image_processor(folder: Path) -> Any:
    """What prepares pictures for a model, the same whether torchvision is installed or not. Raises: LoadError."""
    label = f"{folder.parent.name}/{folder.name}"
    if not (folder / "preprocessor_config.json").is_file():
        raise LoadError(f"{label} has no preprocessor_config.json; fetch the checkpoint again.")
    return made(label, lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **_OFFLINE))


def tokenizer(folder: Path) -> Any:
    """Args: folder: or a GGUF file with T5's vocabulary. Raises: LoadError."""
    label = f"{folder.parent.name}: the part {folder.name}"
    if folder.is_file():
        return made(label, lambda: t5_tokenizer(folder))
    return made(label, lambda: AutoTokenizer.from_pretrained(folder, **_OFFLINE))


def check_words(name: str, part: str, words: Any, rows: int) -> None:
    """A tokenizer's words fit the text encoder's table. Raises: LoadError."""
    if len(words) > rows:
        raise LoadError(
            f"{name}: the part {part} has {len(words)} words, but the text encoder's table has {rows} rows; "
            "take both from one checkpoint."
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
