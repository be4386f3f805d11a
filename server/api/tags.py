"""Labels that a caller puts on a request by the header `X-Fal-Tags`, by fal's rules."""

from __future__ import annotations

from collections.abc import Iterator

MAX_TAGS = 10
MAX_NAME = 64
MAX_VALUE = 256
MAX_BYTES = 1024
RESERVED = "fal."


def read_tags(header: str | None) -> dict[str, str]:
    """The tags of `a=1,b=2`; of equal names the last counts. What breaks a rule is dropped, never the request.

    Of the valid ones those beyond the tenth, and those with which they pass 1,024 bytes, are dropped as well.
    Source: fal.ai/docs/documentation/model-apis/request-tags.
    """
    return dict(_within_bounds(_as_sent(header))) if header else {}


def read_pair(text: str) -> tuple[str, str]:
    """(name, value) of `name=value`, split at the first `=`; without one the value is empty."""
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def _as_sent(header: str) -> str:
    """HTTP reads headers as Latin-1; clients write UTF-8 where they write more than ASCII."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _within_bounds(header: str) -> Iterator[tuple[str, str]]:
    valid = [part for part in header.split(",") if _is_valid(*read_pair(part))]
    used = 0
    for part in valid[:MAX_TAGS]:
        used += len(part.encode())
        if used > MAX_BYTES:
            return
        used += 1  # the comma
        yield read_pair(part)


def _is_valid(name: str, value: str) -> bool:
    is_own = not name.lower().startswith(RESERVED)
    is_sized = 0 < len(name) <= MAX_NAME and 0 < len(value) <= MAX_VALUE
    return is_own and is_sized and name.isprintable() and value.isprintable()
