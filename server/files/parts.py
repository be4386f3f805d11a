"""Parts of uploads: each waits as a file of its own until the last has come."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

_CHUNK_BYTES = 1 << 20


class Parts(Protocol):
    """By the key of the upload and a name in it, both harmless in a path. Raises OSError where the place refuses."""

    def keep(self, key: str, name: str, file: Path) -> None:
        """Take over a finished local file as this part; one of the same name is replaced."""

    def sizes(self, key: str) -> dict[str, int]:
        """The parts that have come, and their bytes."""

    def joined(self, key: str, names: Sequence[str]) -> IO[bytes]:
        """These parts read as one file, in this order."""

    def drop(self, key: str) -> None:
        """Delete all parts of an upload."""

    def drop_older(self, moment: float) -> None:
        """Delete the parts of uploads in which nothing has come since then, in Unix seconds."""


class FolderParts:
    """A folder for every upload, in one folder. See `Parts`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, key: str, name: str, file: Path) -> None:
        (self._folder / key).mkdir(exist_ok=True)
        file.rename(self._folder / key / name)

    def sizes(self, key: str) -> dict[str, int]:
        folder = self._folder / key
        return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}

    def joined(self, key: str, names: Sequence[str]) -> IO[bytes]:
        return io.BufferedReader(_Joined([self._folder / key / name for name in names]), _CHUNK_BYTES)

    def drop(self, key: str) -> None:
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def drop_older(self, moment: float) -> None:
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.stat().st_mtime <= moment:
                shutil.rmtree(folder, ignore_errors=True)


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._rest = list(paths)
        self._file: io.FileIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None or self._rest:
            self._file = self._file or io.FileIO(self._rest.pop(0))
            count = self._file.readinto(buffer) or 0
            if count:
                return count
            self._file.close()
            self._file = None
        return 0
