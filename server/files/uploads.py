"""Files on their way in: whole or in parts, gathered on disk, then stored under a key that was issued before."""

from __future__ import annotations

import asyncio
import hashlib
import io
import mimetypes
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from server.files.objects import Access, Objects

MAX_UPLOAD_BYTES = 2 << 30
MAX_PART_BYTES = 128 << 20
MAX_PARTS = 1000
ABANDONED_S = 86400.0
"""Parts of an upload that was begun this long ago and never completed are deleted."""

_CONTENT_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}(?:; ?[\w.+-]{1,32}=[\w.+\"-]{1,64})*", re.ASCII)
_PART = re.compile(r"[0-9]{1,4}-[0-9a-f]{64}")
_SUFFIX = re.compile(r"[a-z0-9]{1,8}")
_CHUNK_BYTES = 1 << 20
_DEFAULT_TYPE = "application/octet-stream"


class UploadError(ValueError):
    """What was sent does not fit what was announced; the message is for the sender."""


class TooLargeError(UploadError):
    """More bytes than are taken."""


class StorageRefusedError(Exception):
    """The disk takes no more now; it is no fault of the sender."""


@dataclass(frozen=True, slots=True)
class UploadTicket:
    """A file that somebody is allowed to send.

    Args: key: its name in the object store. ttl_s: its lifetime once stored; None for the server's default.
        access: who may read it then. tenant: whose it will be.
    """

    key: str
    content_type: str
    file_name: str | None = None
    ttl_s: float | None = None
    access: Access = "allow"
    tenant: str = ""

    @classmethod
    def make(
        cls, content_type: str, file_name: str | None, ttl_s: float | None, access: Access = "allow", tenant: str = ""
    ) -> UploadTicket:
        """A ticket under a new key; a content type that is none becomes bytes, a path in the name is dropped."""
        kind = content_type if _CONTENT_TYPE.fullmatch(content_type) else _DEFAULT_TYPE
        name = PurePosixPath(file_name.replace("\\", "/")).name[:200] if file_name else None
        printable = name if name and name.isprintable() else None
        return cls(Objects.new_key(_suffix(kind, printable)), kind, printable, ttl_s, access, tenant)


class Uploads:
    """Receives bytes of promised files. Every method raises StorageRefusedError when the disk refuses.

    Args: folder: for parts and unfinished files, on the disk of the object store. ttl_s: the default lifetime.
    """

    def __init__(self, objects: Objects, folder: Path, ttl_s: float) -> None:
        self._objects = objects
        self._folder = folder
        self._ttl_s = ttl_s
        self._swept_at = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    async def receive(self, ticket: UploadTicket, chunks: AsyncIterator[bytes], room: int | None = None) -> None:
        """Store a whole file; sending it again replaces it.

        Args: room: bytes that its tenant may still store. Raises: TooLargeError beyond that or MAX_UPLOAD_BYTES."""
        await asyncio.to_thread(self._sweep)
        temporary = self._folder / f"{secrets.token_hex(8)}.whole"
        try:
            with _disk_may_refuse():
                await _write(temporary, chunks, _within(MAX_UPLOAD_BYTES, room))
                await asyncio.to_thread(self._store, ticket, [temporary])
        finally:
            temporary.unlink(missing_ok=True)

    async def receive_part(
        self, ticket: UploadTicket, number: int, chunks: AsyncIterator[bytes], room: int | None = None
    ) -> str:
        """Keep one part and return its etag; sending it again replaces it.

        Args: as in `receive`.
        Raises: UploadError for a number outside 1..MAX_PARTS, TooLargeError beyond `room` or MAX_PART_BYTES.
        """
        if not 1 <= number <= MAX_PARTS:
            raise UploadError(f"Part numbers go from 1 to {MAX_PARTS}")
        await asyncio.to_thread(self._sweep)
        folder = self._folder / ticket.key
        temporary = folder / f"{secrets.token_hex(8)}.new"
        try:
            with _disk_may_refuse():
                folder.mkdir(exist_ok=True)
                digest = await _write(temporary, chunks, _within(MAX_PART_BYTES, room))
                temporary.rename(folder / f"{number}-{digest}")
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    async def complete(self, ticket: UploadTicket, parts: Any, room: int | None = None) -> None:
        """Join parts in the order of their numbers, whatever the order of the list.

        Args: as in `receive`.
        Raises: UploadError for a list that names what was not sent, TooLargeError beyond `room` or MAX_UPLOAD_BYTES.
        """
        paths = self._parts(ticket, parts)
        limit = _within(MAX_UPLOAD_BYTES, room)
        if sum(path.stat().st_size for path in paths) > limit:
            raise TooLargeError(f"An upload may have {limit} bytes")
        with _disk_may_refuse():
            await asyncio.to_thread(self._store, ticket, paths)
        await asyncio.to_thread(shutil.rmtree, self._folder / ticket.key, ignore_errors=True)

    def _parts(self, ticket: UploadTicket, parts: Any) -> list[Path]:
        if not isinstance(parts, list) or not 0 < len(parts) <= MAX_PARTS:
            raise UploadError(f"parts must be a list of 1 to {MAX_PARTS} entries")
        chosen = {}
        for part in parts:
            if not isinstance(part, dict) or not {"partNumber", "etag"} <= part.keys():
                raise UploadError('Each entry of parts must be {"partNumber": number, "etag": text}')
            number, etag = part["partNumber"], part["etag"]
            name = f"{number}-{etag}".replace('"', "")
            path = self._folder / ticket.key / name
            if not isinstance(number, int) or not _PART.fullmatch(name) or not path.is_file():
                raise UploadError(f"Part {str(number)[:20]} was not sent, or its etag is another one")
            chosen[number] = path
        return [chosen[number] for number in sorted(chosen)]

    def _store(self, ticket: UploadTicket, parts: Sequence[Path]) -> None:
        """Into the object store; a file that is there already is replaced."""
        ttl_s = self._ttl_s if ticket.ttl_s is None else ticket.ttl_s
        self._objects.delete(ticket.key)
        suffix = ticket.key.rpartition(".")[2]
        with io.BufferedReader(_Joined(parts), _CHUNK_BYTES) as source:
            kind, name = ticket.content_type, ticket.file_name
            self._objects.put(source, kind, suffix, name, ttl_s, ticket.key, ticket.access, ticket.tenant)

    def _sweep(self) -> None:
        """Now and then, drop what was never completed."""
        now = time.time()
        if now - self._swept_at < ABANDONED_S / 24:
            return
        self._swept_at = now
        for path in self._folder.iterdir():
            if path.stat().st_mtime > now - ABANDONED_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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


@contextmanager
def _disk_may_refuse() -> Iterator[None]:
    """A full disk is no fault of ours, and passes: the caller may try again. Raises: StorageRefusedError."""
    try:
        yield
    except OSError as exc:
        raise StorageRefusedError(
            f"The server cannot store the file now: {exc.strerror or 'its disk refuses'}"
        ) from exc


async def _write(path: Path, chunks: AsyncIterator[bytes], limit: int) -> str:
    """Write a stream to a new file, off the event loop, and return its SHA-256 in hex. Raises: TooLargeError."""
    digest = hashlib.sha256()
    pending: list[bytes] = []
    size = written = 0
    with path.open("xb") as file:

        def flush() -> None:
            data = b"".join(pending)
            digest.update(data)
            file.write(data)

        async for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size > limit:
                raise TooLargeError(f"The file is larger than {limit} bytes")
            if size - written >= _CHUNK_BYTES:
                await asyncio.to_thread(flush)
                pending.clear()
                written = size
        await asyncio.to_thread(flush)
    return digest.hexdigest()


def _within(limit: int, room: int | None) -> int:
    return limit if room is None else min(limit, room)


def _suffix(content_type: str, file_name: str | None) -> str:
    """A file suffix from the name, or else from the type."""
    from_name = PurePosixPath(file_name or "").suffix.lower().removeprefix(".")
    from_type = (mimetypes.guess_extension(content_type.partition(";")[0]) or "").removeprefix(".")
    return next((suffix for suffix in (from_name, from_type) if _SUFFIX.fullmatch(suffix)), "bin")
