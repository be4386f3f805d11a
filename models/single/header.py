"""The tensors of a single file by name, whatever its container."""

from __future__ import annotations

from pathlib import Path

from models.errors import LoadError
from models.files.headers import read_header
from models.single.contents import Header


def header_of(file: Path) -> Header:
    """Raises: LoadError for a pickle, and for what is damaged."""
    if file.suffix == ".gguf":
        from models.single.gguf import gguf_header

        return gguf_header(file)
    if file.suffix in (".safetensors", ".sft"):
        return read_header(file)
    raise LoadError(
        f"{file.name} is no safetensors or GGUF file; pickled weights are never loaded, take the safetensors form."
    )
