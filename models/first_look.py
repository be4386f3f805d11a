"""What is wrong with a checkpoint as far as names and headers tell it, in a moment and without torch.

`models.checkpoint` checks the same and everything else before it reads weights; that takes the libraries' import.
"""

from __future__ import annotations

from pathlib import Path

from models.adapter_files import AdapterError, check_adapter_file
from models.errors import LoadError
from models.files.folder import (
    FLUX1_PIPELINES,
    FLUX2_PIPELINES,
    FLUX3_PIPELINES,
    OTHERS,
    SDXL_PIPELINES,
    check_folder,
    part_in,
)
from models.files.headers import read_header
from models.files.weights import weight_files
from models.registry import ModelSpec
from models.single.companions import companions, held_part
from models.single.sdxl import whole_prefixes

_FOLDERS = {
    "flux": (("text_encoder", "text_encoder_2", "vae", "transformer"), OTHERS, FLUX1_PIPELINES),
    "sdxl": (("text_encoder", "text_encoder_2", "vae", "unet"), OTHERS, SDXL_PIPELINES),
    "flux2": (("text_encoder", "vae", "transformer"), ("tokenizer", "scheduler"), FLUX2_PIPELINES),
    "flux3": (("text_encoder", "vae", "transformer"), ("tokenizer", "scheduler"), FLUX3_PIPELINES),
}
"""By family: folders with weights, the others, and the pipelines that they may be for."""


def first_look(spec: ModelSpec) -> None:
    """A checkpoint of this machine that draws. Raises: LoadError if it can be seen that it cannot be served."""
    if not spec.draws or (spec.source.startswith("random:") and spec.adapter is None):
        return
    try:
        _look_at(spec)
    except OSError as exc:
        raise LoadError(f"model {spec.name} cannot be read ({exc.strerror or exc}).") from exc


def _look_at(spec: ModelSpec) -> None:
    if spec.adapter is not None:
        check_lora(Path(spec.adapter))
    if spec.file is not None and spec.family != "sdxl":
        held_part("transformer", spec.file, spec.family)
    if spec.file is not None and spec.transformer is None and spec.family == "sdxl":
        whole_prefixes(spec.file)
    elif spec.file is not None and spec.transformer is None:
        companions(spec.file, tuple(map(Path, spec.folders)))
    elif (folder := Path(spec.source)).is_dir():
        _look_into(folder, spec)


def check_lora(file: Path) -> None:
    """The header of a LoRA that a checkpoint is served with. Raises: LoadError, OSError."""
    try:
        check_adapter_file(file)
    except AdapterError as exc:
        raise LoadError(f"the LoRA {file.name} cannot be used: {exc}.") from exc


def _look_into(folder: Path, spec: ModelSpec) -> None:
    parts, others, pipelines = _FOLDERS[spec.family]
    own = tuple(part for part in parts if part != spec.replaced)
    check_folder(folder, own, others, pipelines)
    for part in own:
        for file in weight_files(part_in(folder, part)):
            read_header(file)
