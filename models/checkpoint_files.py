"""Where a checkpoint's files are, and whether they are what they claim: no torch, no pickle."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.registry import ModelSpec

WANTED = (
    "model_index.json",
    "*/*.json",
    "*/*.safetensors",
    "*/*.txt",
    "*/*.model",
)
"""Configs, tokenizers and safetensors of the parts; never the single-file copy beside them, never pickles."""

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"}
_MAX_HEADER = 100 << 20


class LoadError(Exception):
    """The checkpoint cannot be loaded; the message is one sentence that says what to do."""


def locate(spec: ModelSpec) -> Path:
    """The local folder of a checkpoint, fetched into the Hugging Face cache if it has to be.

    Honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Raises: LoadError.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise LoadError(f"model {spec.name}: the folder {spec.source} does not exist.")
    try:
        return Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=list(WANTED)))
    except GatedRepoError as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is gated; accept its licence at https://huggingface.co/{spec.source} "
            "and set HF_TOKEN to a token of that account."
        ) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise LoadError(
            f"model {spec.name}: Hugging Face has no repository {spec.source}"
            f"{f' at {spec.revision}' if spec.revision else ''} that this token may see; check the name, or HF_TOKEN."
        ) from exc
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is not in the local cache and could not be fetched; "
            f"run `hf download {spec.source}` where there is network, or point HF_HOME at a cache that has it."
        ) from exc


def check_parts(folder: Path, parts: tuple[str, ...]) -> None:
    """Every part has a config and sound safetensors. Raises: LoadError naming the part."""
    if not (folder / "model_index.json").is_file():
        raise LoadError(f"{folder.name}: no model_index.json, so this is not a diffusers pipeline folder.")
    for part in parts:
        if not (folder / part / "config.json").is_file():
            raise LoadError(f"{folder.name}: the part {part} has no config.json; fetch the checkpoint again.")
        check_weights(folder / part)


def check_weights(part: Path) -> None:
    """All safetensors of one part, by content. Raises: LoadError."""
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise LoadError(f"{part.parent.name}/{part.name}: no safetensors weights; pickled weights are never loaded.")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Header, dtypes, offsets and length agree, so that loading cannot run past the end. Raises: LoadError.

    Source: the safetensors format, https://huggingface.co/docs/safetensors.
    """
    label = f"{file.parent.name}/{file.name}"
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise LoadError(f"{label} is not a safetensors file; fetch the checkpoint again.")
        try:
            header = json.loads(stream.read(length))
        except ValueError as exc:
            raise LoadError(f"{label} is not a safetensors file; fetch the checkpoint again.") from exc
    header.pop("__metadata__", None)
    unknown = {entry.get("dtype") for entry in header.values()} - _DTYPES
    if unknown:
        raise LoadError(f"{label} holds tensors of unknown type {', '.join(sorted(map(str, unknown)))}.")
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise LoadError(f"{label} is cut short or damaged: {size} bytes, {8 + length + end} announced.")
