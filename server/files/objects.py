"""Files that clients may fetch: result pictures now, uploads later; on the local disk under names nobody guesses."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, get_args
from urllib.parse import urlsplit

from server.files.addresses import SignedAddresses
from server.files.disk import Disk
from server.files.stored_bytes import StoredBytes

Access = Literal["allow", "forbid", "hide"]
"""What a reader without a key of the owner gets: the file, 403, or 404 as if there were none."""

_KEY = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,8}")
_SUFFIX = re.compile(r"[a-z0-9]{1,8}")
KEY_IN_TEXT = re.compile(r"/files/([0-9a-f]{32}\.[a-z0-9]{1,8})")
"""Addresses of files in any text."""
_OWN_ADDRESS = re.compile(r"(?:/cdn)?/files/([^/]+)")
UNDESCRIBED_S = 7 * 86400.0
"""How long a file is kept whose description is lost. It is shown to nobody: it may have been hidden, or expired."""
ABANDONED_S = 3600.0
"""A temporary file this old belongs to a write that was killed."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What is known of one file.

    Args: file_name: what its uploader called it. expires_at: Unix seconds. access: who may read it. tenant: whose it
        is; empty for what was stored without a key.
    """

    key: str
    size: int
    content_type: str
    file_name: str | None = None
    expires_at: float | None = None
    access: Access = "allow"
    tenant: str = ""

    def is_for(self, tenant: str) -> bool:
        """Whether that tenant may read it, even if others may not."""
        return self.access == "allow" or self.belongs_to(tenant)

    def belongs_to(self, tenant: str) -> bool:
        """Whether it is that tenant's, or was stored before there were any."""
        return self.tenant in ("", tenant)


class Objects:
    """Files of one folder, each with a small JSON description beside it.

    A key is 128 random bits and a suffix: one path segment, never made of anything a user said. A file appears
    whole or not at all, and its description first, durably: what is lost in a power cut is never who may read it.
    Only their owner may read the files; other users of the machine go through the server.

    Args: folder: made if missing. clock: Unix seconds. addresses: signs them; None where a file's name is enough.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, addresses: SignedAddresses | None = None
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._addresses = addresses
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stored = StoredBytes()
        self.disk = Disk(folder)
        """Whether the folder takes files; `put` reports what it is refused."""

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
        """Store a file durably and return its key.

        Args: suffix: lower-case letters and digits, without the dot. ttl_s: how long it is kept; None for ever.
            key: one from `new_key` that was promised earlier (an upload's address is known before its bytes).
        Raises: OSError if the disk refuses; then nothing is left behind. ValueError for a bad suffix.
        """
        key = key or self.new_key(suffix)
        path = self._path(key)
        expires_at = None if ttl_s is None else self._clock() + ttl_s
        try:
            size = _write_whole(_temporary(path), data)
            described = StoredObject(key, size, content_type, file_name, expires_at, access, tenant)
            _description(path).unlink(missing_ok=True)
            _write_whole(_description(path), json.dumps(asdict(described)).encode())
            _temporary(path).rename(path)
            _sync_folder(self._folder)
            self._stored.add(tenant, size)
        except BaseException as exc:
            if isinstance(exc, OSError):
                self.disk.note_refused_write(exc)
            self._discard(path)
            raise
        return key

    @staticmethod
    def new_key(suffix: str) -> str:
        """A name that nobody guesses, for a later `put`. Raises: ValueError for a bad suffix."""
        if not _SUFFIX.fullmatch(suffix):
            raise ValueError(f"a suffix is 1 to 8 letters or digits, not {suffix!r}")
        return f"{secrets.token_hex(16)}.{suffix}"

    def path(self, key: str) -> Path | None:
        """Where the file lies, or None if there is none; any string is safe."""
        found = self.stat(key)
        return None if found is None else self._path(key)

    def stored_bytes(self, tenant: str) -> int:
        """How much it keeps here, as counted since the last sweep."""
        return self._stored.of(tenant)

    @property
    def total_bytes(self) -> int:
        """How much is kept here for everybody, as counted since the last sweep."""
        return self._stored.total

    def oldest_beyond(self, keep_bytes: int, before: float) -> float | None:
        """How old files must at least be to go, so that the others are no more than so many bytes.

        Args: before: Unix seconds; younger files stay, however many they are.
        Returns: when the youngest of those that go was written; None if nothing has to, or may."""
        entries = [entry.stat() for entry in os.scandir(self._folder) if _KEY.fullmatch(entry.name)]
        excess = sum(entry.st_size for entry in entries) - keep_bytes
        newest: float | None = None
        for entry in sorted(entries, key=lambda entry: entry.st_mtime):
            if excess <= 0 or entry.st_mtime > before:
                break
            excess -= entry.st_size
            newest = entry.st_mtime
        return newest

    def delete_until(self, moment: float, spared: Collection[str]) -> int:
        """Delete what was written then or earlier, but for these keys; returns how many files went."""
        old = [path.name for path in self._folder.iterdir() if _KEY.fullmatch(path.name) and _written_by(path, moment)]
        return sum(self.delete(key) for key in old if key not in spared)

    def file_of_url(self, url: str, tenant: str = "") -> Path | None:
        """Where the file lies that an address names, whatever its host, if that tenant may read it."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        match = _OWN_ADDRESS.fullmatch(parts.path)
        found = self.stat(match[1]) if match else None
        if found is None or not found.is_for(tenant):
            return None
        is_admitted = found.belongs_to(tenant) or self.admitted_until(found.key, parts.query) is not None
        return self._path(found.key) if is_admitted else None

    def signed(self, address: str) -> str:
        """The address of a file, so that it can be handed out: with a signature where one is asked for."""
        key = address.rpartition("/")[2]
        return address if self._addresses is None else f"{address}?{self._addresses.query_for(key)}"

    def admitted_until(self, key: str, query: str) -> float | None:
        """Until when an address with this query admits, in Unix seconds; None if it does not."""
        return math.inf if self._addresses is None else self._addresses.end_of(key, query)

    def stat(self, key: str) -> StoredObject | None:
        """What is known of it, or None if it is unknown, has expired or lost its description; any string is safe."""
        if not _KEY.fullmatch(key):
            return None
        path = self._path(key)
        found = _read_description(path) if path.is_file() else None
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock()):
            return None
        return found

    def delete(self, key: str) -> bool:
        """Remove a file; False if there was none."""
        if not _KEY.fullmatch(key):
            return False
        path = self._path(key)
        found = self.stat(key)
        existed = path.is_file()
        self._remove(path)
        if found is not None:
            self._stored.add(found.tenant, -found.size)
        return existed

    def sweep(self) -> int:
        """Delete what has expired and what killed writes left; returns how many files went."""
        with self._stored.counting_anew() as count:
            return sum(self._sweep_one(path, count) for path in sorted(self._folder.iterdir()))

    def _path(self, key: str) -> Path:
        return self._folder / key

    def _sweep_one(self, path: Path, count: Callable[[str, int], None]) -> bool:
        if _KEY.fullmatch(path.name):
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

    def _discard(self, path: Path) -> None:
        """Remove what a refused write may have left; the disk may refuse that, too."""
        with suppress(OSError):
            self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        # The file before its description: one without the other must never be visible the wrong way round.
        for part in (path, _temporary(path), _description(path)):
            part.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
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
        found = StoredObject(**json.loads(_description(path).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if found.access in get_args(Access) else None


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
