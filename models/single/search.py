"""Where the companions of a single file are: in its folder, in ComfyUI's tree around it, or where the operator says.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from models.errors import LoadError
from models.files.headers import TensorEntry
from models.registry import Family
from models.single.contents import contents, fits
from models.single.header import header_of

FOLDERS = ("checkpoints", "diffusion_models", "unet", "text_encoders", "clip", "vae")
"""What ComfyUI calls them, inside its `models`."""
_LORAS = ("loras", "models/loras")
"""Where ComfyUI has LoRAs: no part of a checkpoint is sought among them."""
_WEIGHTS = (".safetensors", ".sft", ".gguf")
_TOKENIZERS: dict[tuple[Family, str], tuple[str, ...]] = {
    ("flux", "tokenizer"): ("tokenizer", "clip", "sd1_tokenizer", "comfy/sd1_tokenizer"),
    ("flux", "tokenizer_2"): ("tokenizer_2", "t5", "t5_tokenizer", "comfy/text_encoders/t5_tokenizer"),
    ("flux2", "tokenizer"): ("tokenizer", "qwen3"),
}
"""Folders that hold them: diffusers', plain names, and where ComfyUI's own program keeps them (not its Qwen2.5's, which
has another chat template than Qwen3's)."""
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")


def find_file(name: str, roots: Iterable[Path]) -> Path | None:
    """A file by its name in these folders or ComfyUI's below them; None if it is in none."""
    every = (folder / name for root in roots for folder in (*_folders(root), *(root / each for each in _LORAS)))
    return next((file for file in every if os.path.isfile(file)), None)


def companion(part: str, file: Path, roots: Sequence[Path]) -> Path | None:
    """The file that holds a part, sought near `file` and in `roots`; of several the largest, for it loses least.

    What is of another width than the transformer in `file` takes is another model's.
    """
    transformer = header_of(file)
    found = [
        candidate
        for root in (*_near(file), *roots)
        for folder in _folders(root)
        for candidate in _entries(folder)
        if candidate.suffix in _WEIGHTS and candidate != file and fits(part, _names(candidate), transformer)
    ]
    # An all-in-one holds every part, but for another transformer; a file of the part alone is what was meant.
    alone = [candidate for candidate in found if "transformer" not in contents(_names(candidate))]
    return max(alone or found, key=lambda candidate: candidate.stat().st_size, default=None)


def tokenizer_folder(family: Family, part: str, file: Path, roots: Sequence[Path]) -> Path | None:
    """The folder of a tokenizer (`tokenizer` is CLIP's or Qwen3's, `tokenizer_2` T5's); None if there is none."""
    places = [place for root in (*roots, *_near(file)) for place in (root, root / "models", *root.parents[:2])]
    folders = (place / name for place in places for name in _TOKENIZERS[family, part])
    return next((folder for folder in folders if any((folder / name).is_file() for name in _TOKENIZER_FILES)), None)


def _near(file: Path) -> tuple[Path, ...]:
    """The file's folder, and the tree that it is in if that is ComfyUI's."""
    folder = file.parent
    return (folder.parent, folder) if folder.name in FOLDERS else (folder,)


def _folders(root: Path) -> list[Path]:
    """A folder, and ComfyUI's below it, whether `root` is its `models` or what that is in."""
    return [
        folder for base in (root, root / "models") for folder in (base, *(base / n for n in FOLDERS)) if folder.is_dir()
    ]


@cache
def _header(file: Path, size: int, modified_ns: int) -> Mapping[str, TensorEntry]:
    try:
        return header_of(file)
    except LoadError:
        return {}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _names(file: Path) -> Mapping[str, TensorEntry]:
    """A file's header; empty if it is damaged or a link to nowhere: it is then no companion."""
    try:
        stat = file.stat()
    except OSError:
        return {}
    return _header(file, stat.st_size, stat.st_mtime_ns)
