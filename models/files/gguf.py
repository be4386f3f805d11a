"""What a GGUF file holds, by the `gguf` package (an optional extra). No torch."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.errors import LoadError
from models.files.headers import TensorEntry

KIND = "GGUF:"
"""In front of a block kind's name where safetensors headers have a dtype."""
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def gguf_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors by name, shapes as torch has them. Raises: LoadError."""
    entries = {}
    for tensor in reader(file).tensors:
        kind = tensor.tensor_type.name
        shape = tuple(int(side) for side in reversed(tensor.shape))
        start = int(tensor.data_offset)
        entries[tensor.name] = TensorEntry(PLAIN.get(kind, KIND + kind), shape, start, start + int(tensor.n_bytes))
    return entries


def brings_tokenizer(file: Path) -> bool:
    """Whether it is a GGUF file with T5's vocabulary, as llama.cpp writes it. Raises: LoadError."""
    fields = reader(file).fields if file.suffix == ".gguf" else {}
    kind = fields.get("tokenizer.ggml.model")
    return "tokenizer.ggml.tokens" in fields and kind is not None and kind.contents() == "t5"


def reader(file: Path) -> Any:
    """gguf's GGUFReader over a file; kept, for a vocabulary takes it seconds to look through. Raises: LoadError."""
    label = f"{file.parent.name}/{file.name}"
    if find_spec("gguf") is None:
        raise LoadError(f"{label} is a GGUF file; install what reads it: pip install 'gguf>=0.17'.")
    try:
        stat = file.stat()
        return _reader(file, stat.st_size, stat.st_mtime_ns)
    except Exception as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise LoadError(f"{label} is damaged or no GGUF file ({reason}); fetch it again.") from exc


@lru_cache(maxsize=4)
def _reader(file: Path, size: int, modified_ns: int) -> Any:
    import gguf

    return gguf.GGUFReader(file)
