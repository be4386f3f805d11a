"""Which files are the weights of a part: those that the part names, and no other that lies beside them. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from models.errors import LoadError
from models.files.folder import part_in

_SHA256 = re.compile("[0-9a-f]{64}")
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call the weights of a part."""
PREFERRED = ("bf16", "fp32", "fp16")
"""Of several variants without a plain file, the one that loses least in the dtype of most devices comes first."""


def weight_files(part: Path) -> tuple[Path, ...]:
    """The safetensors files of a part: an index's shards, else one file, else those of a variant (`model.fp16...`).

    Raises: LoadError, also if the index names anything but safetensors inside the part.
    """
    index = _first(part, ("safetensors.index.json",))
    if index is not None:
        return _shards(index)
    single = _first(part, ("safetensors",))
    if single is not None:
        return (single,)
    for variant in (*PREFERRED, *_other_variants(part)):
        index = _first(part, (f"safetensors.index.{variant}.json", f"{variant}.safetensors.index.json"))
        if index is not None:
            return _shards(index)
        single = _first(part, (f"{variant}.safetensors",))
        if single is not None:
            return (single,)
    raise LoadError(f"{part.parent.name}/{part.name}: no safetensors weights{_what_instead(part)}.")


def identity(file: Path) -> tuple[object, ...]:
    """Equal for files of equal content, as far as that is known without reading them.

    In a Hugging Face cache a file is a link to a blob named by its SHA-256; every repository has its own blobs.
    """
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return ("sha256", blob.name)
    stat = blob.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size)


def _first(part: Path, endings: tuple[str, ...]) -> Path | None:
    """A link that leads nowhere is found, too: it is what the part names."""
    candidates = (part / f"{stem}.{ending}" for stem in STEMS for ending in endings)
    return next((file for file in candidates if file.exists() or file.is_symlink()), None)


def _other_variants(part: Path) -> list[str]:
    """`ema` of `model.ema.safetensors`."""
    names = (file.name.split(".") for stem in STEMS for file in sorted(part.glob(f"{stem}.*.safetensors")))
    return [words[1] for words in names if len(words) == 3 and words[1] not in PREFERRED and "-of-" not in words[1]]


def _shards(index: Path) -> tuple[Path, ...]:
    label = f"{index.parent.name}/{index.name}"
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LoadError(f"{label} is damaged: it names no files; fetch the checkpoint again.") from exc
    for name in names:
        if not isinstance(name, str) or "/" in name or "\\" in name:
            raise LoadError(f"{label} names {str(name)[:100]!r}, which is no file beside it.")
        if not name.endswith(".safetensors"):
            raise LoadError(f"{label} names {name[:100]}; pickled weights are never loaded, only safetensors.")
    missing = sorted(name for name in names if not (index.parent / name).exists())
    if missing or not names:
        raise LoadError(f"{label} names {_listed(missing) or 'no file'}, not there; fetch the checkpoint again.")
    return tuple(part_in(index.parent, name) for name in sorted(names))


def _what_instead(part: Path) -> str:
    names = sorted(entry.name for entry in part.iterdir() if entry.is_file()) if part.is_dir() else []
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return "; pickled weights are never loaded, fetch the safetensors form"
    if any(name.endswith(".gguf") for name in names):
        return "; a GGUF file is given by itself, as --transformer FILE"
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        wanted = " or ".join(f"{stem}.safetensors" for stem in STEMS)
        return f" under the name {wanted}, only {_listed(others)}"
    return "; fetch the checkpoint again"


def _listed(names: list[str]) -> str:
    """The first three and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
