"""Files in a bucket of an S3 service, for nodes that share them.

    KEY                                     the bytes
    KEY.json                                the description; with it the file can be seen
    index/TENANT/HOUR/SIZE.KEY              empty: its name tells what expires when, and who keeps how much
    parts/KEY/NUMBER-DIGEST                 parts of an upload that is under way
    parts/KEY.new/whole                     what is about to replace a file

HOUR counts from 1970, the first by whose beginning the file has expired. A sweep lists the hours, and then only those
that are past; the bytes of a tenant are a list of that tenant's names.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.files.addresses import SignedAddresses
from server.files.counted_bytes import CountedBytes
from server.files.objects import KEY, Access, FileRefusedError, Objects, StoredObject
from server.files.parts import Parts
from server.files.s3_bucket import Bucket, Listed
from server.files.s3_parts import PARTS, S3Parts

INDEX = "index/"
FOR_EVER = "never"
HOUR_S = 3600.0
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class _Entry:
    """One name in the index."""

    name: str
    key: str
    size: int
    modified: float

    @classmethod
    def of(cls, listed: Listed) -> _Entry:
        size, _, key = listed.name.rpartition("/")[2].partition(".")
        return cls(listed.name, key, int(size) if size.isdecimal() else 0, listed.modified)


class S3Objects(Objects):
    """See `Objects`. Files are shared by all nodes that are given the same bucket and prefix.

    Args: clock: Unix seconds. addresses: signs them; None where a file's name is enough. redirects: whether clients
        fetch files from the service itself. threads: of `beside`.
    """

    piece_bytes = 1 << 20  # each is a request

    def __init__(
        self,
        bucket: Bucket,
        clock: Callable[[], float] = time.time,
        addresses: SignedAddresses | None = None,
        redirects: bool = False,
        threads: Executor | None = None,
    ) -> None:
        super().__init__(clock, addresses, threads)
        self._bucket = bucket
        self.redirects = redirects
        self._counted = CountedBytes(self._count)

    @property
    def direct_origin(self) -> str | None:
        return self._bucket.origin if self.redirects else None

    @property
    def problem(self) -> str | None:
        return self._bucket.problem

    def probe(self) -> None:
        self._bucket.probe()

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
        is_new, key = key is None, key or self.new_key(suffix)
        now = self._clock()
        expires_at = None if ttl_s is None else now + ttl_s
        described = StoredObject(key, _size(data), content_type, file_name, expires_at, access, tenant, now)
        old = None if is_new else self._described(key)
        if old is None or _told(old) == _told(described):
            # What a kill leaves is in the index, so that it goes when it would have; only the description makes it
            # visible.
            self._bucket.put(_index_name(described), b"")
            self._bucket.put(key, data, content_type)
        else:
            self._replace(described, data)
        self._bucket.put(f"{key}.json", described.to_json(), "application/json")
        self._counted.add((_tenant_folder(tenant), INDEX), described.size)
        if old is not None:
            self._forget(old, described)
        return key

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        if not KEY.fullmatch(key):
            return None
        return b"" if length == 0 else self._bucket.get(key, start, length)

    def delete(self, key: str) -> bool:
        found = self._described(key) if KEY.fullmatch(key) else None
        if found is None:
            return False
        self._remove([_Entry(_index_name(found), key, found.size, 0.0)])
        self._counted.add((_tenant_folder(found.tenant), INDEX), -found.size)
        return True

    def sweep(self) -> int:
        now = int(self._clock() // HOUR_S)
        hours = (hour for tenant in self._bucket.folders(INDEX) for hour in self._bucket.folders(tenant))
        past = (hour for hour in hours if (name := hour.split("/")[-2]).isdecimal() and int(name) <= now)
        return self._remove(_Entry.of(listed) for hour in past for listed in self._bucket.names(hour))

    def stored_bytes(self, tenant: str) -> int:
        return self._counted.of(_tenant_folder(tenant))

    @property
    def total_bytes(self) -> int:
        return self._counted.of(INDEX)

    def oldest_beyond(self, keep_bytes: int, before: float) -> float | None:
        entries = sorted((entry.modified, entry.size) for entry in self._entries())
        excess = sum(size for _, size in entries) - keep_bytes
        newest: float | None = None
        for modified, size in entries:
            if excess <= 0 or modified > before:
                break
            excess -= size
            newest = modified
        return newest

    def delete_until(self, moment: float, spared: Collection[str]) -> int:
        return self._remove(entry for entry in self._entries() if entry.modified <= moment and entry.key not in spared)

    def parts(self, scratch: Path) -> Parts:
        return S3Parts(self._bucket, scratch)

    def direct_url(self, stored: StoredObject, disposition: str, lifetime_s: float) -> str:
        return self._bucket.address(stored.key, lifetime_s, stored.content_type, disposition)

    def _replace(self, new: StoredObject, data: bytes | IO[bytes]) -> None:
        """Put bytes in the place of others that are described in another way: that description would tell wrong things
        of them and goes before they come, but not before they are whole beside it.

        Raises: FileRefusedError if the service keeps it."""
        arrived = f"{PARTS}{new.key}.new/whole"  # there it goes in a day, should this be killed
        self._bucket.put(arrived, data, new.content_type)
        if self._bucket.delete([f"{new.key}.json"]):
            raise FileRefusedError(f"{new.key} cannot be replaced: its description is not deleted by the bucket")
        self._bucket.put(_index_name(new), b"")
        self._bucket.copy(arrived, new.key, new.content_type)
        self._bucket.delete([arrived])

    def _forget(self, old: StoredObject, new: StoredObject) -> None:
        """The index tells of the new one alone."""
        if (name := _index_name(old)) != _index_name(new):
            self._bucket.delete([name])
        self._counted.add((_tenant_folder(old.tenant), INDEX), -old.size)

    def _described(self, key: str) -> StoredObject | None:
        data = self._bucket.get(f"{key}.json")
        return None if data is None else StoredObject.from_json(data)

    def _entries(self, folder: str = INDEX) -> Iterator[_Entry]:
        return (_Entry.of(listed) for listed in self._bucket.names(folder))

    def _count(self, folder: str) -> int:
        return sum(entry.size for entry in self._entries(folder))

    def _remove(self, entries: Iterable[_Entry]) -> int:
        """Delete files with all that belongs to them, the descriptions first: nothing is seen that is half gone.

        Raises: FileRefusedError when all others have gone, if the service keeps some."""
        gone, kept = 0, 0
        for batch in _batches(entries):
            left = batch
            for name_of in _NAMES:
                refused = self._bucket.delete([name_of(entry) for entry in left])
                left = [entry for entry in left if name_of(entry) not in refused]
            gone, kept = gone + len(left), kept + len(batch) - len(left)
        if kept:
            raise FileRefusedError(f"{kept} files are not deleted by the bucket; {gone} are gone")
        return gone


_NAMES: tuple[Callable[[_Entry], str], ...] = (
    lambda entry: f"{entry.key}.json",
    lambda entry: entry.key,
    lambda entry: entry.name,
)
"""What belongs to a file, in the order in which it goes."""


def _told(stored: StoredObject) -> tuple[object, ...]:
    """What of a description must not stand beside other bytes."""
    return stored.size, stored.content_type, stored.access, stored.tenant


def _batches(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    batch: list[_Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _tenant_folder(tenant: str) -> str:
    """Of a digest: a tenant's name may hold what a name in a bucket may not."""
    return f"{INDEX}{hashlib.sha256(tenant.encode()).hexdigest()[:32]}/"


def _index_name(stored: StoredObject) -> str:
    hour = FOR_EVER if stored.expires_at is None else str(math.ceil(stored.expires_at / HOUR_S))
    return f"{_tenant_folder(stored.tenant)}{hour}/{stored.size}.{stored.key}"


def _size(data: bytes | IO[bytes]) -> int:
    """Bytes of what is to be stored, from its beginning, where it is left."""
    if isinstance(data, bytes):
        return len(data)
    size = data.seek(0, io.SEEK_END)
    data.seek(0)
    return size
