"""Under which address a caller knows us: directly, behind a reverse proxy, or by one of fal's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from starlette.types import Scope

from server.http.errors import PlainError
from server.http.names import FAL_HOSTS
from server.http.peers import is_loopback_peer

Headers = Mapping[bytes, bytes]
"""By lower-case name."""

_SCHEMES = {"ws": "http", "wss": "https"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_FORWARDED = frozenset(
    {b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix", b"forwarded"}
)
_HOST = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_PAIR = re.compile(r'(proto|host)\s*=\s*"?([^";,\s]+)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Own:
    """What the operator says of our address. Args: plain_port: where plain HTTP listens; None if unknown."""

    public_url: str | None = None
    plain_port: int | None = None


class Origin(NamedTuple):
    """One caller's view.

    Args:
        address: scheme, host and a proxy's path prefix, for follow-up addresses.
        host: the bare lower-case host name.
        files: the same as `address` for files and upload targets, which get passed on and opened by programs that know
            neither our authority nor our proxy: the public address, or plain HTTP for who is on this machine or
            came by one of fal's names, which mean us to nobody else.
    """

    address: str
    host: str
    files: str


def origin_of(scope: Scope, headers: Headers, own: Own) -> Origin:
    """Read the caller's view of us from an ASGI scope. Raises: PlainError 400 for an unusable host."""
    scheme: str = scope["scheme"]
    scheme = _SCHEMES.get(scheme, scheme)
    written = headers.get(b"host", b"").decode("latin-1")
    prefix = ""
    # Forwarded headers count only from a peer on this machine: there a reverse proxy is the usual sender.
    is_forwarded = not _FORWARDED.isdisjoint(headers) and is_loopback_peer(scope)
    if is_forwarded:
        scheme, written, prefix = _forwarded(headers, scheme, written)
    if not written:
        name, port = scope.get("server") or ("localhost", None)
        written = f"{name}:{port}" if port else str(name)
    host = name_of(written)
    address = f"{scheme}://{written}{prefix}"
    # A browser's page, which sends its origin, may not load plain HTTP into itself.
    is_settled = is_forwarded or own.public_url or b"origin" in headers
    plain = None if is_settled else _plain(scope, scheme, host, own.plain_port)
    return Origin(address, host, own.public_url or plain or address)


@lru_cache(maxsize=64)
def name_of(host: str) -> str:
    """The lower-case host name without a port. Raises: PlainError 400."""
    if not _HOST.fullmatch(host):
        raise PlainError(400, "The Host header is not a host name")
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
    return name.lower().removesuffix(".")


def _forwarded(headers: Headers, scheme: str, host: str) -> tuple[str, str, str]:
    """Scheme, host with port and path prefix as the first proxy saw them."""
    pairs = {name.lower(): value for name, value in _PAIR.findall(_first(headers, b"forwarded"))}
    proto = (_first(headers, b"x-forwarded-proto") or pairs.get("proto", "")).lower()
    proto = _SCHEMES.get(proto, proto)
    scheme = proto if proto in _DEFAULT_PORTS else scheme
    host = _first(headers, b"x-forwarded-host") or pairs.get("host", "") or host
    port = _first(headers, b"x-forwarded-port")
    has_port = re.search(r":[0-9]+$", host) is not None
    if host and not has_port and re.fullmatch(r"[0-9]{1,5}", port) and port != _DEFAULT_PORTS.get(scheme):
        host = f"{host}:{port}"
    prefix = _first(headers, b"x-forwarded-prefix").rstrip("/")
    return scheme, host, prefix if _PREFIX.fullmatch(prefix) else ""


def _first(headers: Headers, name: bytes) -> str:
    """The first of the values that proxies on the way have put into one header."""
    return headers.get(name, b"").decode("latin-1").partition(",")[0].strip()


def _plain(scope: Scope, scheme: str, host: str, port: int | None) -> str | None:
    """Our plain HTTP address where that serves the caller better than the one they came by."""
    if port is None:
        return None
    if host in FAL_HOSTS:
        name, _ = scope.get("server") or (None, None)
        return f"http://[{name}]:{port}" if name and ":" in name else f"http://{name}:{port}" if name else None
    if scheme == "https" and host in _LOOPBACK_NAMES and is_loopback_peer(scope):
        return f"http://{host}:{port}"
    return None
