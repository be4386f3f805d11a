"""Files that only their owner may read, and secrets that are never replaced in silence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class DamagedSecretError(Exception):
    """A secret is there and cannot be used; the sentence says what to do."""


def secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a secret's file, made on first use, readable by its owner alone.

    Raises: DamagedSecretError if it cannot be read. OSError if it cannot be made."""
    if not path.exists():
        private_folder(path.parent)
        write_private(path, make())
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DamagedSecretError(f"{path} cannot be read: {exc.strerror}") from exc


def private_folder(path: Path) -> None:
    """Make a folder that only we can enter; one that exists keeps its rights. Raises: OSError."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)


def write_private(path: Path, data: bytes) -> None:
    """Create a file that only we can read; if another process was first, its file stands."""
    temporary = _written(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def replace_private(path: Path, data: bytes) -> None:
    """Put a file that only we can read in the place of the old one, durably and as a whole."""
    _written(path, data).replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(path: Path, data: bytes) -> Path:
    """A new file beside `path`, on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary
