"""What a GGUF file holds, by the `gguf` package (an optional extra). No torch."""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import LoadError
from models.files.headers import TensorEntry

_MAGIC = b"GGUF"
KIND = "GGUF:"
"""In front of a block kind's name where safetensors headers have a dtype."""
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def is_gguf(file: Path) -> bool:
    """By its first bytes, whatever it is called; False for what cannot be read."""
    try:
        with _opened(file) as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _opened(file: Path) -> BinaryIO:
    """Raises: OSError, also for a pipe, which would be waited for without end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    return file.open("rb")


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
    fields = reader(file).fields if is_gguf(file) else {}
    kind = fields.get("tokenizer.ggml.model")
    return "tokenizer.ggml.tokens" in fields and kind is not None and kind.contents() == "t5"


def reader(file: Path) -> Any:
    """gguf's GGUFReader over a file; kept, for a vocabulary takes it seconds to look through. Raises: LoadError."""
    label = f"{file.parent.name}/{file.name}"
    if find_spec("gguf") is None:
        raise LoadError(f"{label} is a GGUF file; install what reads it: pip install 'gguf>=0.17'.")
    try:
        with _opened(file) as stream:
            found = os.fstat(stream.fileno())
        return _reader(file, found.st_size, found.st_mtime_ns)
    except Exception as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise LoadError(f"{label} is damaged or no GGUF file ({reason}); fetch it again.") from exc


@lru_cache(maxsize=4)
def _reader(file: Path, size: int, modified_ns: int) -> Any:
    import gguf

    return gguf.GGUFReader(file)
