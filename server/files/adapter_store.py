"""LoRAs on this node's disk, named by their content, the least recently used dropped beyond a size."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from models.adapter_files import check_adapter_file

IN_USE_S = 900.0
"""A file that was asked for so recently is not dropped: its request may wait for a worker that has yet to read it."""
ABANDONED_S = 3600.0
"""A file under way for so long is the rest of a killed fetch."""

_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_CHUNK_BYTES = 1 << 20


class AdapterStore:
    """Files `<sha256>.safetensors`, readable by their owner only. Any thread; several may work at once.

    Args: folder: made if it is missing. max_bytes: kept at most, apart from files in use. clock: seconds since 1970.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_file(self) -> Path:
        """An empty private file for something on its way in; give it to `keep`, or unlink it."""
        path = self.folder / f"{secrets.token_hex(8)}.new"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return path

    def copy(self, source: Path) -> str:
        """Keep a copy of a file that is somebody else's; returns its name here. Raises: AdapterError, OSError."""
        check_adapter_file(source)
        path = self.new_file()
        try:
            shutil.copyfile(source, path)
            return self.keep(path)
        finally:
            path.unlink(missing_ok=True)

    def keep(self, path: Path) -> str:
        """Take over a file made by `new_file`; returns its name here. Raises: AdapterError if it is no LoRA."""
        check_adapter_file(path)
        name = f"{_sha256(path)}.safetensors"
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave half a file under the name of the whole
        path.rename(self.folder / name)
        self._use(name)
        self._make_room()
        return name

    def has(self, name: str) -> bool:
        """Is it here? It counts as used now."""
        try:
            self._use(name)
        except FileNotFoundError:
            return False
        return True

    def _use(self, name: str) -> None:
        now = self._clock()
        os.utime(self.folder / name, (now, now))

    def _make_room(self) -> None:
        files = sorted(
            (facts.st_mtime, facts.st_size, path) for path in self.folder.iterdir() if (facts := _stat(path))
        )
        kept = sum(size for _, size, path in files if _NAME.fullmatch(path.name))
        now = self._clock()
        for used, size, path in files:
            if not _NAME.fullmatch(path.name):
                if used < now - ABANDONED_S:
                    path.unlink(missing_ok=True)
            elif kept > self._max_bytes and used < now - IN_USE_S:
                path.unlink(missing_ok=True)
                kept -= size


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    """None if another thread has just removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
