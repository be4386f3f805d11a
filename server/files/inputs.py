"""URL, data URI or upload to vetted pixels: the only code that fetches for a user.

    data:...                       decoded in here
    .../files/{key}                one of our own files: read here, whatever host the address names
    http://... and https://...     fetched from the public internet, and what the operator allows besides

What arrives is bounded in bytes, known by its content, and decoded in a process of its own. Every failure is one of
fal's model errors (`PictureError`); `server.api.pictures` adds the field that named the address.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import aclosing, suppress
from urllib.parse import unquote_to_bytes

import httpx

from server.files.decoding import FORMATS, Limits, PictureError, Pixels, Reading, decode
from server.files.objects import Objects, why_not_fetched
from server.files.picture_pool import PicturePool
from server.http.downloads import FAILURES, MAX_REDIRECTS, body_of, refuse_other_redirects, why_failed
from server.http.outgoing import ForbiddenAddressError, Network, VettedTransport

MAX_BYTES = 64 << 20
"""Of one picture file: the 33 megapixels that may be decoded need less in every format but a PNG of pure noise."""

DEADLINE_S = 60.0
"""For one fetch, redirects and all."""

SILENCE_S = 15.0
"""For a connection to open, and between two pieces of an answer."""

_INFLATED = ("gzip", "x-gzip", "deflate")

ANY_SIZE = Limits()


class Inputs:
    """Reads the pictures of inputs.

    Args: objects: our own files. pool: decodes. allowed: networks that may be reached besides the public internet.
    """

    def __init__(self, objects: Objects, pool: PicturePool, allowed: Sequence[Network] = ()) -> None:
        self._objects = objects
        self._pool = pool
        self._client = httpx.AsyncClient(
            transport=VettedTransport(allowed),
            trust_env=False,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            event_hooks={"response": [refuse_other_redirects]},
            timeout=SILENCE_S,
            # Nothing packed: its true size would be known only after unpacking.
            headers={"accept": "image/*", "accept-encoding": "identity", "user-agent": "fluxserve"},
        )

    async def read(
        self,
        url: str,
        limits: Limits = ANY_SIZE,
        reading: Reading = "colours",
        grow: int = 0,
        tenant: str = "",
        seen_area: int | None = None,
    ) -> Pixels:
        """The pixels behind an address; `reading`, `grow` and `seen_area` as for `decode`.

        Args: tenant: who asks, for files that are not for all. Raises: PictureError."""
        try:
            return await self._pool.run(decode, await self._bytes(url, tenant), limits, reading, grow, seen_area)
        except (BrokenProcessPool, MemoryError) as exc:
            # It killed every process that tried.
            raise PictureError("image_load_error", "The picture cannot be read") from exc

    async def aclose(self) -> None:
        """Close what is open. The pool is its owner's."""
        await self._client.aclose()

    async def _bytes(self, url: str, tenant: str) -> bytes:
        """What the address leads to. Raises: PictureError `file_download_error` or `file_too_large`."""
        if url[:5].lower() == "data:":
            return _bounded(await asyncio.to_thread(_data_of, url))
        if (own := await self._objects.beside(self._own_file, url, tenant)) is not None:
            return own
        if not url.lower().startswith(("http://", "https://")):
            raise _not_downloaded("it must be an http or https URL, or a data URI")
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._fetch(url)
        except ForbiddenAddressError as exc:
            raise _not_downloaded(why_not_fetched(url, str(exc))) from exc
        except FAILURES as exc:
            raise _not_downloaded(why_failed(exc)) from exc

    def _own_file(self, url: str, tenant: str) -> bytes | None:
        """The content, if the address is one of our own files."""
        found = self._objects.find(url, tenant)
        if found is None:
            return None
        if found.size > MAX_BYTES:
            raise _too_large()
        return self._objects.read(found.key)

    async def _fetch(self, url: str) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async with self._client.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise _not_downloaded(f"its server answered {answer.status_code}")
            if int(answer.headers.get("content-length", "0")) > MAX_BYTES:
                raise _too_large()
            async with aclosing(body_of(answer)) as body:
                async for chunk in body:
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise _too_large()
                    chunks.append(chunk)
            packing = answer.headers.get("content-encoding", "").strip().lower()
        return await asyncio.to_thread(_unpacked, b"".join(chunks), packing)


def _unpacked(data: bytes, packing: str) -> bytes:
    """A body without its Content-Encoding, which some servers use unasked, and some name in vain.

    Raises: PictureError `file_download_error` or `file_too_large`."""
    if packing in ("", "identity") or data.startswith(tuple(FORMATS.values())):
        return data
    if packing in _INFLATED:
        inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
        with suppress(zlib.error):
            plain = _bounded(inflating.decompress(data, MAX_BYTES + 1))
            if inflating.eof:
                return plain
    raise _not_downloaded(f"its server has packed it ({packing[:20]}), unasked, and it cannot be unpacked")


def _data_of(uri: str) -> bytes:
    """The content of a data URI; its media type is not looked at. Raises: PictureError `file_download_error`."""
    head, comma, body = uri[5:].partition(",")
    if not comma:
        raise _not_downloaded("the data URI has no data")
    data = unquote_to_bytes(body)
    if head.rpartition(";")[2].strip().lower() != "base64":
        return data
    packed = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as exc:
        raise _not_downloaded("the data URI is not base64") from exc


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise _too_large()
    return data


def _too_large() -> PictureError:
    return PictureError("file_too_large", f"The file is larger than {MAX_BYTES} bytes", {"max_size": MAX_BYTES})


def _not_downloaded(reason: str) -> PictureError:
    return PictureError("file_download_error", f"The file could not be downloaded: {reason}")
