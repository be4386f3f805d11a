"""What a GGUF file holds, by the `gguf` package (an optional extra). No torch."""

from __future__ import annotations

import errno
import math
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
_SHAPE = "comfy.gguf.orig_shape."
"""In front of a tensor's name: the shape that it had before it was laid out for blocks, as ComfyUI's nodes write it."""
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
    entries, found = {}, reader(file)
    for tensor in found.tensors:
        kind, start = tensor.tensor_type.name, int(tensor.data_offset)
        entry = TensorEntry(PLAIN.get(kind, KIND + kind), shape_of(found, tensor), start, start + int(tensor.n_bytes))
        entries[tensor.name] = entry
    return entries


def shape_of(found: Any, tensor: Any) -> tuple[int, ...]:
    """As torch has it. Args: found: from `reader`. tensor: one of its own. Raises: LoadError."""
    field = found.fields.get(_SHAPE + tensor.name)
    if field is None:
        return tuple(int(side) for side in reversed(tensor.shape))
    sides = field.contents()
    if not isinstance(sides, list) or math.prod(sides) != int(tensor.n_elements):
        raise LoadError(f"{tensor.name} has another number of values than its shape announces; fetch the file again.")
    return tuple(map(int, sides))


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
