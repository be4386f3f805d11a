"""Which area a request means, and under which address the caller knows us.

The same path means "run now" in one area and "enqueue" in another. Areas are reached in three equal ways: by the
Host header (`queue.example.com`, fal's own names), by a path prefix (`/queue`), and by the header
`x-fal-target-url` at the proxy endpoint, which is dispatched in here: no connection is ever opened for it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from starlette.types import Scope

from server.api.paths import FollowUp, follow_up
from server.gateway.origins import Headers, Origin, Own, name_of, origin_of
from server.http.errors import PlainError
from server.http.names import FAL_HOSTS


class Area(StrEnum):
    """fal's hosts, and our own pages beside them."""

    RUN = "run"
    QUEUE = "queue"
    REST = "rest"
    CDN = "cdn"
    WS = "ws"
    SYSTEM = "system"


PREFIXES: Mapping[str, Area] = {area.value: area for area in Area if area is not Area.SYSTEM}
SYSTEM_SEGMENTS = frozenset(
    {
        "",
        "livez",
        "readyz",
        "health",
        "metrics",
        "v1",
        "api",
        "openapi.json",
        "docs",
        "playground",
        "history",
        "keys",
        "ui",
        "favicon.ico",
        "mcp",
        "models",
        "llms.txt",
    }
)
"""First path segments that are ours on our own name. None can begin an endpoint id: an app owner of that name
would have to be met by `/run/...`."""

_CDN_HOSTS = frozenset({"v3.fal.media", "v3b.fal.media", "fal.media"})
_PLATFORM_HOSTS = frozenset({"fal.ai", "api.fal.ai"})
_LABELS = frozenset({Area.QUEUE.value, Area.REST.value, Area.WS.value})
_REST_SEGMENTS = frozenset({".well-known", "tokens", "storage"})
_TARGETS: Mapping[str, Area] = {
    "fal.run": Area.RUN,
    "queue.fal.run": Area.QUEUE,
    "rest.fal.ai": Area.REST,
    "rest.alpha.fal.ai": Area.REST,
}
_PROXY_PATHS = ("/api/fal/proxy", "/fal/proxy")
_PROXY_METHODS = frozenset({"GET", "POST", "PUT", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Target(NamedTuple):
    """How one request came in.

    Args:
        area: what it is about.
        path: inside the area: no prefix, no trailing slash, percent-decoded (an encoded slash stays `%2F`).
        query: raw query string (the target's, for proxied calls).
        origin: scheme and host as the caller reaches us.
        files: the same for addresses of files and uploads, which others must be able to open.
        prefix: what to put between origin and an endpoint id so that a follow-up comes back to the queue.
        request_id: of the job that a follow-up asks about, or else the id that a new job will get.
        follow_up: the question about an earlier request, if it is one.
    """

    area: Area
    path: str
    query: bytes
    origin: str
    files: str
    prefix: str
    request_id: str
    follow_up: FollowUp | None = None

    @property
    def base(self) -> str:
        """Scheme, host and prefix for follow-up addresses."""
        return self.origin + self.prefix


def resolve_target(scope: Scope, own: Own) -> Target:
    """Read the area, the inner path and the caller's view of us from an ASGI scope.

    Who came by one of fal's own names (private DNS, a tunnel) follows a request up by it: the public address may lead
    nowhere there.

    Raises: PlainError 400 for an unusable Host header or proxy target, 405 for a wrong proxy method.
    """
    headers: Headers = dict(reversed(scope["headers"]))  # of a repeated one, the first counts
    origin = origin_of(scope, headers, own)
    path = clean_path(scope)
    if path.startswith(_PROXY_PATHS) and _is_proxy_path(path):
        return _proxied(scope, headers, own.public_url or origin.address, origin.files)
    is_fals = origin.host in FAL_HOSTS
    public_url = None if is_fals else own.public_url
    area, inner = _by_host(origin.host, path) if is_fals else _by_prefix(_label_of(origin, own), path)
    was_bare = area is Area.QUEUE and inner == path and not public_url
    prefix = "" if was_bare else f"/{Area.QUEUE}"
    return _made_target(area, inner, scope["query_string"], public_url or origin.address, origin.files, prefix)


def clean_path(scope: Scope) -> str:
    """The path without trailing slashes; encoded slashes stay encoded, so that they separate nothing."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    text = raw.partition(b"?")[0].decode("latin-1").rstrip("/")
    if "%" not in text:
        return text
    return "/".join(unquote(segment, errors="replace").replace("/", "%2F") for segment in text.split("/"))


def _is_proxy_path(path: str) -> bool:
    return any(path == proxy or path.startswith(f"{proxy}/") for proxy in _PROXY_PATHS)


def _by_host(host: str, path: str) -> tuple[Area, str]:
    """Area and inner path for a request that came by one of fal's own names."""
    if path.startswith("/files/"):
        return Area.CDN, path  # on every host, so that a result's addresses work wherever it was asked for
    if host in _CDN_HOSTS:
        return Area.CDN, path
    if host in _PLATFORM_HOSTS:
        return Area.SYSTEM, path  # its pages and the platform's API are among ours
    label = host.partition(".")[0]
    return (Area(label), path) if label in _LABELS else _by_prefix(None, path)


def _label_of(origin: Origin, own: Own) -> Area | None:
    """The area that the first label of a name of ours means; none if that is our name as the operator has it."""
    label, dot, _ = origin.host.partition(".")
    if not dot or label not in _LABELS:
        return None
    is_own_name = own.public_url is not None and name_of(urlsplit(own.public_url).netloc) == origin.host
    return None if is_own_name else Area(label)


def _by_prefix(label: Area | None, path: str) -> tuple[Area, str]:
    """Area and inner path for a request on our own name. A prefix and our pages come before the name's first label."""
    _, first, rest = f"{path}//".split("/", 2)
    if first == "files":
        return Area.CDN, path
    if first in PREFIXES:
        return PREFIXES[first], f"/{rest}".rstrip("/")
    if first in SYSTEM_SEGMENTS:
        return Area.SYSTEM, path
    if first in _REST_SEGMENTS:
        return Area.REST, path
    if label is not None and label is not Area.REST:
        return label, path
    if follow_up(path):
        return Area.QUEUE, path
    return Area.RUN, path


def _proxied(scope: Scope, headers: Headers, origin: str, files: str) -> Target:
    """The target that the proxy endpoint's target means; follow-ups come back under our own name and prefix."""
    if scope.get("method") not in _PROXY_METHODS:
        raise PlainError(405, "Method Not Allowed", {"allow": ", ".join(sorted(_PROXY_METHODS))})
    if scope["method"] == "OPTIONS":
        return _made_target(Area.RUN, "", b"", origin, files, f"/{Area.QUEUE}")
    area, path, query = _target(headers.get(b"x-fal-target-url", b"").decode("latin-1"))
    return _made_target(area, path, query, origin, files, f"/{Area.QUEUE}")


def _target(url: str) -> tuple[Area, str, bytes]:
    """Area, inner path and query of a proxy target. Raises PlainError 400 for anything but fal's own hosts."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.username is None and parts.port in (None, 80, 443)
    except ValueError:
        is_usable = False
    if not url or not is_usable or (parts.hostname or "") not in _TARGETS:
        raise PlainError(400, f"x-fal-target-url must be an address on one of {', '.join(_TARGETS)}")
    area = _TARGETS[parts.hostname or ""]
    target: Scope = {"raw_path": parts.path.encode(), "path": parts.path}
    return area, clean_path(target), parts.query.encode()


def _made_target(area: Area, path: str, query: bytes, origin: str, files: str, prefix: str) -> Target:
    tail = follow_up(path) if area in (Area.QUEUE, Area.RUN) else None
    if tail and area is Area.RUN:
        area = Area.QUEUE  # `requests/{id}` cannot mean anything else
    known = tail is not None and _REQUEST_ID.fullmatch(tail.request_id)
    request_id = tail.request_id if tail and known else str(uuid.uuid4())
    return Target(area, path, query, origin.rstrip("/"), files.rstrip("/"), prefix, request_id, tail)
