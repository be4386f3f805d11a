"""Files in a folder of this machine, each with a small JSON description beside it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO

from server.files.addresses import SignedAddresses
from server.files.disk import Disk
from server.files.objects import KEY, Access, Objects, StoredObject
from server.files.parts import FolderParts, Parts
from server.files.stored_bytes import StoredBytes

UNDESCRIBED_S = 7 * 86400.0
"""How long a file is kept whose description is lost. It is shown to nobody: it may have been hidden, or expired."""
ABANDONED_S = 3600.0
"""A temporary file this old belongs to a write that was killed."""


class FolderObjects(Objects):
    """See `Objects`. A description is there before its file: what is lost in a power cut is never who may read it.
    Only their owner may read the files; other users of the machine go through the server.

    Args: folder: made if missing. clock: Unix seconds. addresses: signs them; None where a file's name is enough.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, addresses: SignedAddresses | None = None
    ) -> None:
        super().__init__(clock, addresses)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stored = StoredBytes()
        self.disk = Disk(folder)
        """Whether the folder takes files; `put` reports what it is refused."""

    @property
    def problem(self) -> str | None:
        return self.disk.problem

    def probe(self) -> None:
        self.disk.probe()

    def put(
        self,
        data: bytes | IO[bytes],
        content_type: str,
        suffix: str,
        file_name: str | None = None,
        ttl_s: float | None = None,
        key: str | None = None,
        access: Access = "allow",
        tenant: str = "",
    ) -> str:
        old = None if key is None else self._described(key)
        key = key or self.new_key(suffix)
        path = self._path(key)
        expires_at = None if ttl_s is None else self._clock() + ttl_s
        self._discard_unfinished(path)  # of a write that was killed
        try:
            size = _write_whole(_unfinished(path), data)
            described = StoredObject(key, size, content_type, file_name, expires_at, access, tenant, self._clock())
            _write_whole(_unfinished(_description(path)), described.to_json())
            _unfinished(_description(path)).rename(_description(path))
            _unfinished(path).rename(path)
            _sync_folder(self._folder)
        except BaseException as exc:
            if isinstance(exc, OSError):
                self.disk.note_refused_write(exc)
            self._discard_unfinished(path)
            raise
        self._stored.add(tenant, size)
        if old is not None:
            self._stored.add(old.tenant, -old.size)
        return key

    def path(self, key: str) -> Path | None:
        """Where the file lies, or None if there is none; any string is safe."""
        found = self.stat(key)
        return None if found is None else self._path(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        if not KEY.fullmatch(key):
            return None
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except FileNotFoundError:
            return None

    def stored_bytes(self, tenant: str) -> int:
        return self._stored.of(tenant)

    @property
    def total_bytes(self) -> int:
        return self._stored.total

    def oldest_beyond(self, keep_bytes: int, before: float) -> float | None:
        entries = [entry.stat() for entry in os.scandir(self._folder) if KEY.fullmatch(entry.name)]
        excess = sum(entry.st_size for entry in entries) - keep_bytes
        newest: float | None = None
        for entry in sorted(entries, key=lambda entry: entry.st_mtime):
            if excess <= 0 or entry.st_mtime > before:
                break
            excess -= entry.st_size
            newest = entry.st_mtime
        return newest

    def delete_until(self, moment: float, spared: Collection[str]) -> int:
        old = [path.name for path in self._folder.iterdir() if KEY.fullmatch(path.name) and _written_by(path, moment)]
        return sum(self.delete(key) for key in old if key not in spared)

    def parts(self, scratch: Path) -> Parts:
        return FolderParts(scratch)

    def delete(self, key: str) -> bool:
        if not KEY.fullmatch(key):
            return False
        path = self._path(key)
        found = self.stat(key)
        existed = path.is_file()
        self._remove(path)
        if found is not None:
            self._stored.add(found.tenant, -found.size)
        return existed

    def sweep(self) -> int:
        with self._stored.counting_anew() as count:
            return sum(self._sweep_one(path, count) for path in sorted(self._folder.iterdir()))

    def _described(self, key: str) -> StoredObject | None:
        path = self._path(key)
        return _read_description(path) if path.is_file() else None

    def _path(self, key: str) -> Path:
        return self._folder / key

    def _sweep_one(self, path: Path, count: Callable[[str, int], None]) -> bool:
        if KEY.fullmatch(path.name):
            found = self.stat(path.name)
            if found is not None:
                count(found.tenant, found.size)
            is_dead = found is None and (_read_description(path) is not None or self._is_older(path, UNDESCRIBED_S))
        else:
            is_dead = not path.with_suffix("").exists() and self._is_older(path, ABANDONED_S)
        if is_dead:
            self._remove(path)
        return is_dead

    def _is_older(self, path: Path, age_s: float) -> bool:
        return path.exists() and path.stat().st_mtime <= self._clock() - age_s

    @staticmethod
    def _discard_unfinished(path: Path) -> None:
        """Remove what a write has not come to the end of; the disk may refuse that, too."""
        for part in (path, _description(path)):
            with suppress(OSError):
                _unfinished(part).unlink(missing_ok=True)

    @staticmethod
    def _remove(path: Path) -> None:
        # The file before its description: one without the other must never be visible the wrong way round.
        for part in (path, _description(path)):
            part.unlink(missing_ok=True)
            _unfinished(part).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_whole(path: Path, data: bytes | IO[bytes]) -> int:
    """Write and fsync a new file; returns its size in bytes."""
    source = BytesIO(data) if isinstance(data, bytes) else data
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
        return target.tell()


def _read_description(path: Path) -> StoredObject | None:
    """What lies beside the file; None if it is missing or damaged."""
    try:
        return StoredObject.from_json(_description(path).read_bytes())
    except FileNotFoundError:
        return None


def _written_by(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime <= moment
    except FileNotFoundError:  # it has been deleted meanwhile
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
