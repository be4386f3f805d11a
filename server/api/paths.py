"""fal's path rules: `[namespace/]owner/alias[/path]`, and the `requests/{id}` tails that follow a request."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Action = Literal["result", "status", "status/stream", "cancel"]

NAMESPACES = frozenset({"workflows", "comfy"})
_ACTIONS: dict[str, Action] = {
    "": "result",
    "response": "result",
    "status": "status",
    "status/stream": "status/stream",
    "cancel": "cancel",
}
_LEGACY_ID = re.compile(r"([0-9]+)-([a-zA-Z0-9-]+)")


class FollowUp(NamedTuple):
    """A question about an earlier request.

    Args:
        app: what stands before `requests/`, as the client wrote it.
        request_id: the segment after `requests/`, unchecked.
        action: what is asked; None for a tail that means nothing.
    """

    app: str
    request_id: str
    action: Action | None


def follow_up(path: str) -> FollowUp | None:
    """The follow-up that a path without trailing slash means, or None; the last `requests/{id}` tail counts."""
    if "/requests/" not in path:
        return None
    app, _, tail = path.strip("/").rpartition("/requests/")
    request_id, _, action = tail.partition("/")
    if not app or not request_id:
        return None
    return FollowUp(app, request_id, _ACTIONS.get(action))


def endpoint_id(path: str) -> str:
    """The endpoint id of a run or submit path: no outer slashes, a legacy `1234-app` split into owner and alias."""
    name = path.strip("/")
    legacy = _LEGACY_ID.fullmatch(name)
    return f"{legacy[1]}/{legacy[2]}" if legacy else name


@lru_cache(maxsize=1024)
def app_root(endpoint: str) -> str:
    """`owner/alias`, or `namespace/owner/alias`: the part of an endpoint id that its follow-ups keep."""
    segments = endpoint_id(endpoint).split("/")
    return "/".join(segments[: 3 if segments[0] in NAMESPACES else 2])


def belongs_to(endpoint: str, app: str) -> bool:
    """Whether a follow-up under `app` may speak of a job of `endpoint`.

    The app root must match, not the sub-path, because clients drop it. A `comfy` id may come without its
    last segment: fal.apps keeps only two.
    """
    root = app_root(endpoint)
    return app_root(app) == root or (root.startswith("comfy/") and root.startswith(f"{app}/"))
