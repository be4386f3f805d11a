"""Files on their way in: whole or in parts, gathered first, then stored under a key that was issued before."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from weakref import WeakValueDictionary

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
    """Nothing more is taken now; it is no fault of the sender."""


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
    """Receives bytes of promised files. Every method raises StorageRefusedError when the disk or the store refuses.

    Args: folder: for unfinished files, and parts where they wait on this node. ttl_s: the default lifetime.
    """

    def __init__(self, objects: Objects, folder: Path, ttl_s: float) -> None:
        self._objects = objects
        self._folder = folder
        self._ttl_s = ttl_s
        self._swept_at = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._parts = objects.parts(folder)
        self._guard = threading.Lock()
        self._storing: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        """Of the uploads that are being stored."""

    async def receive(self, ticket: UploadTicket, chunks: AsyncIterator[bytes], room: int | None = None) -> None:
        """Store a whole file; sending it again replaces it.

        Args: room: bytes that its tenant may still store. Raises: TooLargeError beyond that or MAX_UPLOAD_BYTES."""
        with _refusals_told():
            await self._ask_for_store(ticket)
            await self._objects.beside(self._sweep)
            async with self._written(chunks, _within(MAX_UPLOAD_BYTES, room)) as (temporary, _):
                await self._objects.beside(self._store_file, ticket, temporary)

    async def receive_part(
        self, ticket: UploadTicket, number: int, chunks: AsyncIterator[bytes], room: int | None = None
    ) -> str:
        """Keep one part and return its etag; sending it again replaces it.

        Args: as in `receive`.
        Raises: UploadError for a number outside 1..MAX_PARTS, TooLargeError beyond `room` or MAX_PART_BYTES.
        """
        if not 1 <= number <= MAX_PARTS:
            raise UploadError(f"Part numbers go from 1 to {MAX_PARTS}")
        with _refusals_told():
            await self._ask_for_store(ticket)
            await self._objects.beside(self._sweep)
            async with self._written(chunks, _within(MAX_PART_BYTES, room)) as (temporary, digest):
                await self._objects.beside(self._parts.keep, ticket.key, f"{number}-{digest}", temporary)
        return digest

    async def complete(self, ticket: UploadTicket, parts: Any, room: int | None = None) -> None:
        """Join parts in the order of their numbers, whatever the order of the list.

        Args: as in `receive`.
        Raises: UploadError for a list that names what was not sent, TooLargeError beyond `room` or MAX_UPLOAD_BYTES.
        """
        with _refusals_told():
            await self._objects.beside(self._join, ticket, parts, _within(MAX_UPLOAD_BYTES, room))

    def _join(self, ticket: UploadTicket, parts: Any, limit: int) -> None:
        with self._only_one(ticket.key):
            self._join_once(ticket, parts, limit)

    @contextmanager
    def _only_one(self, key: str) -> Iterator[None]:
        """A caller that heard nothing for long calls again, and the first call may still be at it."""
        with self._guard:
            lock = self._storing.get(key) or threading.Lock()
            self._storing[key] = lock
        with lock:
            yield

    def _join_once(self, ticket: UploadTicket, parts: Any, limit: int) -> None:
        sizes = self._parts.sizes(ticket.key)
        if not sizes and self._objects.stat(ticket.key) is not None:
            return  # joined by an earlier call
        names = _chosen(parts, sizes)
        if sum(sizes[name] for name in names) > limit:
            raise TooLargeError(f"An upload may have {limit} bytes")
        with self._parts.joined(ticket.key, names) as source:
            self._store(ticket, source)
        self._parts.drop(ticket.key)

    async def _ask_for_store(self, ticket: UploadTicket) -> None:
        """Before bytes are read that could not be stored: raises ObjectsAwayError."""
        await self._objects.beside(self._objects.stat, ticket.key)

    @asynccontextmanager
    async def _written(self, chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[tuple[Path, str]]:
        """A stream as a file of this node and its SHA-256 in hex; the file is gone afterwards."""
        temporary = self._folder / f"{secrets.token_hex(8)}.new"
        try:
            yield temporary, await _write(temporary, chunks, limit)
        finally:
            temporary.unlink(missing_ok=True)

    def _store_file(self, ticket: UploadTicket, file: Path) -> None:
        with self._only_one(ticket.key), file.open("rb") as source:
            self._store(ticket, source)

    def _store(self, ticket: UploadTicket, source: IO[bytes]) -> None:
        """Into the object store; a file that is there already is replaced."""
        ttl_s = self._ttl_s if ticket.ttl_s is None else ticket.ttl_s
        suffix = ticket.key.rpartition(".")[2]
        kind, name = ticket.content_type, ticket.file_name
        self._objects.put(source, kind, suffix, name, ttl_s, ticket.key, ticket.access, ticket.tenant)

    def _sweep(self) -> None:
        """Now and then, drop what was never completed."""
        now = time.time()
        if now - self._swept_at < ABANDONED_S / 24:
            return
        self._swept_at = now
        self._parts.drop_older(now - ABANDONED_S)
        for path in self._folder.iterdir():
            if path.is_file() and path.stat().st_mtime <= now - ABANDONED_S:
                path.unlink(missing_ok=True)


def _chosen(parts: Any, sent: Collection[str]) -> list[str]:
    """The names of these parts in the order of their numbers. Raises: UploadError."""
    if not isinstance(parts, list) or not 0 < len(parts) <= MAX_PARTS:
        raise UploadError(f"parts must be a list of 1 to {MAX_PARTS} entries")
    chosen = {}
    for part in parts:
        if not isinstance(part, dict) or not {"partNumber", "etag"} <= part.keys():
            raise UploadError('Each entry of parts must be {"partNumber": number, "etag": text}')
        number, etag = part["partNumber"], part["etag"]
        name = f"{number}-{etag}".replace('"', "")
        if not isinstance(number, int) or not _PART.fullmatch(name) or name not in sent:
            raise UploadError(f"Part {str(number)[:20]} was not sent, or its etag is another one")
        chosen[number] = name
    return [chosen[number] for number in sorted(chosen)]


@contextmanager
def _refusals_told() -> Iterator[None]:
    """A full disk and a store that is away pass: the caller may try again. Raises: StorageRefusedError."""
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
