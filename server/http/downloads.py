"""Fetching a file that a user named: what can go wrong on the way, in words for that user."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import httpx

MAX_REDIRECTS = 5

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)


class DownloadError(Exception):
    """What came was no file; the message goes on from "the file could not be downloaded: "."""


FAILURES = (DownloadError, TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError)
"""All that a fetch through a `VettedTransport` may raise, beside ForbiddenAddressError."""


def why_failed(exc: Exception) -> str:
    """One of FAILURES in words, as for DownloadError."""
    if isinstance(exc, DownloadError):
        return str(exc)
    if isinstance(exc, httpx.TooManyRedirects):
        return f"it redirects more than {MAX_REDIRECTS} times"
    if isinstance(exc, TimeoutError | httpx.TimeoutException):
        return "its server is too slow"
    return "its server cannot be reached, or does not speak HTTP"


async def refuse_other_redirects(answer: httpx.Response) -> None:
    """A response hook. httpx gives an address without a host the last one's, and says nothing of its scheme.

    Raises: DownloadError where it redirects to anything but http and https."""
    if not answer.has_redirect_location:
        return
    scheme = _SCHEME.match(answer.headers["location"])
    if scheme is not None and scheme[1].lower() not in ("http", "https"):
        raise DownloadError(
            f"it redirects to a {scheme[1][:20].lower()}: address, and only http and https are followed"
        )


async def body_of(answer: httpx.Response, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
    """The body as it comes, still packed if it is. Raises: DownloadError where it breaks off; httpx.HTTPError."""
    try:
        async for chunk in answer.aiter_raw(chunk_size):
            yield chunk
    except (httpx.RemoteProtocolError, httpx.ReadError) as exc:
        announced = answer.headers.get("content-length")
        of_all = "" if announced is None else f" of {announced}"
        msg = f"its server closed the connection after {answer.num_bytes_downloaded}{of_all} bytes"
        raise DownloadError(msg) from exc
