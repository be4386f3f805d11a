"""Files that clients may fetch, result pictures and uploads: what every place that keeps them can do.

A key is 128 random bits and a suffix: one path segment, never made of anything a user said.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import IO, Literal, ParamSpec, TypeVar, get_args
from urllib.parse import urlsplit

from server.files.addresses import SignedAddresses
from server.files.parts import Parts

P = ParamSpec("P")
T = TypeVar("T")

Access = Literal["allow", "forbid", "hide"]
"""What a reader without a key of the owner gets: the file, 403, or 404 as if there were none."""

KEY = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,8}")
KEY_IN_TEXT = re.compile(r"/files/([0-9a-f]{32}\.[a-z0-9]{1,8})")
"""Addresses of files in any text."""
_SUFFIX = re.compile(r"[a-z0-9]{1,8}")
_OWN_ADDRESS = re.compile(r"(?:/cdn)?/files/([^/]+)")
_PIECE_BYTES = 8 << 20


def why_not_fetched(url: str, refusal: str) -> str:
    """Why an address inside was not fetched: by its shape it may have been one of our own files, and that is gone."""
    path = re.split("[?#]", url, maxsplit=1)[0].partition("//")[2].partition("/")[2]
    is_like_ours = _OWN_ADDRESS.fullmatch(f"/{path}") is not None
    return f"this server has no such file, or no longer, and {refusal}" if is_like_ours else refusal


class ObjectsAwayError(OSError):
    """The place that keeps the files cannot be used now, and may be again.

    Its `strerror` is for anybody. Args: why: for the operator, as it names the place."""

    said = "the object store is away"

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, self.said)
        self.why = why

    def __str__(self) -> str:
        return self.why


class FileRefusedError(ObjectsAwayError):
    """One file cannot be stored or read now; the place is there for others."""

    said = "the object store refuses this file"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What is known of one file.

    Args: file_name: what its uploader called it. expires_at, stored_at: Unix seconds. access: who may read it.
        tenant: whose it is; empty for what was stored without a key.
    """

    key: str
    size: int
    content_type: str
    file_name: str | None = None
    expires_at: float | None = None
    access: Access = "allow"
    tenant: str = ""
    stored_at: float | None = field(default=None, compare=False)

    def is_for(self, tenant: str) -> bool:
        """Whether that tenant may read it, even if others may not."""
        return self.access == "allow" or self.belongs_to(tenant)

    def belongs_to(self, tenant: str) -> bool:
        """Whether it is that tenant's, or was stored before there were any."""
        return self.tenant in ("", tenant)

    def to_json(self) -> bytes:
        """The description that lies beside the file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoredObject | None:
        """A description; None if it is damaged. What a newer server says besides is passed over."""
        try:
            said = json.loads(data)
            found = cls(**{item.name: said[item.name] for item in fields(cls) if item.name in said})
        except (ValueError, TypeError):
            return None
        return found if found.access in get_args(Access) else None


class Objects(ABC):
    """Every method may be called from any thread, and raises OSError where the place refuses or is away.

    Args: clock: Unix seconds. addresses: signs them; None where a file's name is enough. threads: for `beside`; None
        for those of the event loop.
    """

    redirects = False
    """Whether clients fetch files by `direct_url`."""
    piece_bytes = 256 << 10
    """To be read at once for somebody who may take them slowly: it stays in memory until then."""

    def __init__(
        self, clock: Callable[[], float], addresses: SignedAddresses | None, threads: Executor | None = None
    ) -> None:
        self._clock = clock
        self._addresses = addresses
        self._threads = threads

    async def beside(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what reads or writes files on threads kept for that: a place that is slow takes none from anything
        else."""
        run = partial(copy_context().run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def close(self) -> None:
        """Begin nothing more on those threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def direct_origin(self) -> str | None:
        """Scheme and host of every `direct_url`, where clients fetch files by those."""
        return None

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Why nothing can be stored now, in one sentence; None while it can."""

    @abstractmethod
    def probe(self) -> None:
        """Find out whether files can be stored; called every second, and cheap while nothing is wrong."""

    @abstractmethod
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
        """Store a file durably and return its key: it appears whole or not at all, and never without who may read it.

        Args: suffix: lower-case letters and digits, without the dot. ttl_s: how long it is kept; None for ever.
            key: one from `new_key` that was promised earlier (an upload's address is known before its bytes).
        Raises: OSError if the place refuses; then nothing can be seen of it. ValueError for a bad suffix.
        """

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        """So many bytes of a file from `start`, all of them without a length; None if there is no such file.

        Looks at no description: `stat` says whether it may be read."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove a file; False if there was none."""

    @abstractmethod
    def sweep(self) -> int:
        """Delete what has expired and what killed writes left; returns how many files went."""

    @abstractmethod
    def stored_bytes(self, tenant: str) -> int:
        """How much it keeps here, as counted lately; too little until the first count has ended. Takes no time."""

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """How much is kept here for everybody, in the same way."""

    @abstractmethod
    def oldest_beyond(self, keep_bytes: int, before: float) -> float | None:
        """How old files must at least be to go, so that the others are no more than so many bytes.

        Args: before: Unix seconds; younger files stay, however many they are.
        Returns: when the youngest of those that go was written; None if nothing has to, or may."""

    @abstractmethod
    def delete_until(self, moment: float, spared: Collection[str]) -> int:
        """Delete what was written then or earlier, but for these keys; returns how many files went."""

    @abstractmethod
    def parts(self, scratch: Path) -> Parts:
        """Where parts of uploads wait for each other. Args: scratch: a folder of this node's."""

    @abstractmethod
    def _described(self, key: str) -> StoredObject | None:
        """The description of this well-formed key, if there are a file and a sound description."""

    def direct_url(self, stored: StoredObject, disposition: str, lifetime_s: float) -> str | None:
        """Where a client may fetch a file without us for so long; None if only through us. May ask for credentials."""
        return None

    @staticmethod
    def new_key(suffix: str) -> str:
        """A name that nobody guesses, for a later `put`. Raises: ValueError for a bad suffix."""
        if not _SUFFIX.fullmatch(suffix):
            raise ValueError(f"a suffix is 1 to 8 letters or digits, not {suffix!r}")
        return f"{secrets.token_hex(16)}.{suffix}"

    def stat(self, key: str) -> StoredObject | None:
        """What is known of it, or None if it is unknown, has expired or lost its description; any string is safe."""
        found = self._described(key) if KEY.fullmatch(key) else None
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock()):
            return None
        return found

    def copy_to(self, stored: StoredObject, target: Path) -> bool:
        """Write a file's content to a local one, in pieces; False if it is gone."""
        with target.open("wb") as file:
            while file.tell() < stored.size:
                piece = self.read(stored.key, file.tell(), _PIECE_BYTES)
                if not piece:
                    return False
                file.write(piece)
        return True

    def find(self, url: str, tenant: str = "") -> StoredObject | None:
        """The file that an address names, whatever its host, if that tenant may read it."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        match = _OWN_ADDRESS.fullmatch(parts.path)
        found = self.stat(match[1]) if match else None
        if found is None or not found.is_for(tenant):
            return None
        is_admitted = found.belongs_to(tenant) or self.admitted_until(found.key, parts.query) is not None
        return found if is_admitted else None

    def signed(self, address: str) -> str:
        """The address of a file, so that it can be handed out: with a signature where one is asked for."""
        key = address.rpartition("/")[2]
        return address if self._addresses is None else f"{address}?{self._addresses.query_for(key)}"

    def admitted_until(self, key: str, query: str) -> float | None:
        """Until when an address with this query admits, in Unix seconds; None if it does not."""
        return math.inf if self._addresses is None else self._addresses.end_of(key, query)
