"""One bucket of an S3 service, below a prefix: bytes by name, and what is wrong with it in one sentence.

With the client library (boto3, an optional extra), imported when a server is told to keep its files in S3.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Lock
from typing import IO, Any
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, ReadTimeoutError

from server.files.objects import FileRefusedError, ObjectsAwayError
from server.files.s3_client import new_client
from server.files.s3_faults import FAULTS, is_of_the_service, reason

logger = logging.getLogger("fluxserve.objects")

PROBE_S = 30.0
"""While all is well it is asked this often; every refused request tells sooner."""
_PAGE = 1000
"""Names in one answer to a list, and in one request to delete: what S3 allows."""
# Larger files go in parts, which are tried again one by one.
_TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)

_PROBES = "probe/"
_PROBE = b"fluxserve"


@dataclass(frozen=True, slots=True)
class Listed:
    """One name in a bucket. Args: name: without the prefix. modified: Unix seconds, by the service's clock."""

    name: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a check has found.

    Args: problem: why no files can be kept there, in one sentence with what to do; None where they can. lasting: why
        none can be deleted. took_s: of storing a few bytes. ahead_s: how far this machine's clock is ahead of the
        service's, to half a second; None if the service does not tell.
    """

    problem: str | None
    lasting: str | None = None
    took_s: float = 0.0
    ahead_s: float | None = None


class Bucket:
    """Any thread. Everything raises ObjectsAwayError where the service fails or does not answer.

    After one such failure it is not asked again until `probe` has found it well: threads that wait for a dead service
    would be missing elsewhere. A file that it refuses to give raises FileRefusedError, and keeps no other from being
    read; `probe` then looks at once whether others are refused as well.

    Args: url: s3://BUCKET or s3://BUCKET/PREFIX. endpoint: of the service; None for AWS. One that begins with the
        bucket's name is asked in the virtual-host style, any other by path.
    Raises: BucketError.
    """

    def __init__(self, url: str, endpoint: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(url)
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._url = url.rstrip("/")
        self._client = new_client(self._bucket, endpoint)
        self._service = urlsplit(self._client.meta.endpoint_url).netloc
        self._clock = clock
        self._probe_name = f"{_PROBES}{secrets.token_hex(8)}"  # one, or they would gather where nothing is deleted
        self._must_take = 0
        self._proven_until = 0.0
        self._lock = Lock()
        self.problem: str | None = None
        """Why it takes no files, in one sentence; None while it does."""

    def put(self, name: str, data: bytes | IO[bytes], content_type: str = "application/octet-stream") -> None:
        """Store under a name, whole or not at all, replacing what was there."""
        with self._asking():
            if isinstance(data, bytes):
                self._put_bytes(name, data, content_type)
            else:
                kind = {"ContentType": content_type}
                self._client.upload_fileobj(data, self._bucket, self._prefix + name, ExtraArgs=kind, Config=_TRANSFER)

    def _put_bytes(self, name: str, data: bytes, content_type: str) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, ContentType=content_type)
        except FAULTS:
            self._must_take = len(data)  # one that is full may take less
            raise

    def copy(self, name: str, target: str, content_type: str) -> None:
        """What is under a name, under another as well; the service does it by itself, whole or not at all."""
        what = {"CopySource": {"Bucket": self._bucket, "Key": self._prefix + name}, "ContentType": content_type}
        with self._asking():
            self._client.copy_object(
                Bucket=self._bucket, Key=self._prefix + target, MetadataDirective="REPLACE", **what
            )

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        """So many bytes from `start`, all without a length, none behind the end; None if nothing has this name."""
        with suppress(_CutShortError):
            return self._read(name, start, length)
        return self._read(name, start, length)  # the library tries again only until an answer has begun

    def _read(self, name: str, start: int, length: int | None) -> bytes | None:
        end = "" if length is None else start + length - 1
        part = {} if start == 0 and length is None else {"Range": f"bytes={start}-{end}"}
        with self._asking():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **part)
            except ClientError as exc:
                code = exc.response.get("Error", {}).get("Code")
                if code in ("NoSuchKey", "InvalidRange"):
                    return None if code == "NoSuchKey" else b""
                if is_of_the_service(exc):
                    raise
                raise self._refused(f"refuses {name}: {reason(exc)}", FileRefusedError) from exc
            data = self._body(answer, name)
        if part and "ContentRange" not in answer:  # some services send everything, whatever is asked
            return data[start:] if length is None else data[start : start + length]
        return data

    def _body(self, answer: dict[str, Any], name: str) -> bytes:
        try:
            data: bytes = answer["Body"].read()
        except FAULTS as exc:
            # Who has waited through a silence is not asked to wait through another.
            kind = FileRefusedError if isinstance(exc, ReadTimeoutError) else _CutShortError
            raise self._refused(f"breaks off in the middle of {name} ({type(exc).__name__})", kind) from exc
        return data

    def _refused(self, how: str, kind: type[FileRefusedError]) -> FileRefusedError:
        """It may be this file, or all: the next probe looks."""
        with self._lock:
            self._proven_until = 0.0
        return kind(f"{self.where} {how}")

    def delete(self, names: Sequence[str]) -> frozenset[str]:
        """Remove these; it does not matter whether they are there. Returns those that the service does not delete."""
        refused: set[str] = set()
        for first in range(0, len(names), _PAGE):
            page = names[first : first + _PAGE]
            with self._asking():
                refused |= self._deleted(page)
        return frozenset(refused)

    def _deleted(self, names: Sequence[str]) -> set[str]:
        keys = [{"Key": self._prefix + name} for name in names]
        answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
        refused = answer.get("Errors", ())
        for error in refused[:1]:
            logger.warning("%s does not delete %s: %s", self.where, error.get("Key"), error.get("Code"))
        return {str(error.get("Key", "")).removeprefix(self._prefix) for error in refused}

    def names(self, folder: str) -> Iterator[Listed]:
        """Everything below a folder, which ends in a slash; one request for each thousand."""
        for page in self._pages(folder):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                yield Listed(name, entry["Size"], entry["LastModified"].timestamp())

    def folders(self, folder: str) -> list[str]:
        """The folders right below one, each with a slash at its end."""
        pages = self._pages(folder, Delimiter="/")
        return [
            entry["Prefix"].removeprefix(self._prefix) for page in pages for entry in page.get("CommonPrefixes", ())
        ]

    @property
    def origin(self) -> str | None:
        """Scheme and host of every `address`; None without credentials."""
        what = {"Bucket": self._bucket, "Key": self._prefix}
        try:
            address = urlsplit(self._client.generate_presigned_url("get_object", what))
        except FAULTS:
            return None
        return f"{address.scheme}://{address.netloc}"

    def address(self, name: str, lifetime_s: float, content_type: str, disposition: str) -> str:
        """An address under which anybody may fetch it for so long; S3 answers with these two headers."""
        said = {"ResponseContentType": content_type, "ResponseContentDisposition": disposition}
        what = {"Bucket": self._bucket, "Key": self._prefix + name, **said}
        with self._asking():
            url: str = self._client.generate_presigned_url("get_object", what, ExpiresIn=max(1, int(lifetime_s)))
        return url

    def probe(self) -> None:
        """See `Objects.probe`."""
        if self.problem is None and self._clock() < self._proven_until:
            return
        self._turn(self.check().problem)

    def check(self) -> Look:
        """Write, read, list and delete something. May take half a minute."""
        name, began, at = self._probe_name, time.monotonic(), time.time()
        content = _PROBE.ljust(self._must_take, b"\0")
        try:
            answer = self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)
        except FAULTS as exc:
            return Look(self._explain(exc))
        took_s = time.monotonic() - began
        steps = (partial(self._read_back, name, content), self._list_probes)
        problem = next((problem for step in steps if (problem := self._tried(step)) is not None), None)
        return Look(problem, self._why_lasting(name), took_s, _ahead_s(answer, at + took_s / 2))

    def _tried(self, step: Callable[[], str | None]) -> str | None:
        try:
            return step()
        except FAULTS as exc:
            return self._explain(exc)

    def _read_back(self, name: str, content: bytes) -> str | None:
        found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
        advice = "correct --s3-endpoint if that is no S3 service"
        return None if found == content else f"{self.where} gives back other bytes than it was given; {advice}"

    def _list_probes(self) -> None:
        self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + _PROBES, MaxKeys=1)

    def _why_lasting(self, name: str) -> str | None:
        try:
            why = "it needs s3:DeleteObject" if self._deleted([name]) else None
        except FAULTS as exc:
            why = reason(exc)
        return why and f"{self.where} deletes nothing, and what has expired stays: {why}"

    def _pages(self, folder: str, **how: str) -> Iterator[dict[str, Any]]:
        how = {"Bucket": self._bucket, "Prefix": self._prefix + folder, **how}
        while True:
            with self._asking():
                page = self._client.list_objects_v2(**how)
            yield page
            if not page.get("IsTruncated"):
                return
            how["ContinuationToken"] = page["NextContinuationToken"]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        if (problem := self.problem) is not None:
            raise ObjectsAwayError(problem)
        try:
            yield
        except ObjectsAwayError:
            raise
        except FAULTS as exc:
            self._turn(why := self._explain(exc))
            raise ObjectsAwayError(why) from exc

    def _turn(self, why: str | None) -> None:
        with self._lock:
            was, self.problem = self.problem, why
            self._proven_until = self._clock() + PROBE_S
        if was is None and why is not None:
            logger.error("%s; not ready until it does", why)
        elif was is not None and why is None:
            self._must_take = 0
            logger.info("%s takes files again", self._url)

    @property
    def where(self) -> str:
        """Its address, and the host of the service."""
        return f"{self._url} at {self._service}"

    def _explain(self, exc: Exception) -> str:
        """What went wrong and what to do, in one sentence without a secret."""
        return f"{self.where} takes no files: {reason(exc)}"


class _CutShortError(FileRefusedError):
    """An answer that began well has not come to its end."""


def _ahead_s(answer: dict[str, Any], at: float) -> float | None:
    """Args: at: when it was given, by this machine's clock."""
    try:
        there = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    return at - (there + 0.5)  # whole seconds, cut off
