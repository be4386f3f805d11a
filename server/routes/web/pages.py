"""The pages for people: one HTML document, its modules and styles, and how each client is pointed at this server.

The pages call the public API and nothing else. Nothing is built: what is in `static/` is what a browser gets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).with_name("static")


def _policy(files_from: str | None) -> str:
    """Nothing from elsewhere but the files that are kept there, nothing inline, no frame around it."""
    files = "'self'" if files_from is None else f"'self' {files_from}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {files} data: blob:; connect-src {files}; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def pages_router(plain: Callable[[Request], Response], files_from: Callable[[], str | None]) -> APIRouter:
    """The pages.

    Args: plain: what answers `/` for who does not ask for HTML by name: programs, curl. files_from: where browsers are
        sent to for files; None if this server hands them out.
    """
    router = APIRouter(include_in_schema=False)
    # Every module at once: found one by one, in the order of their imports, they would take four round trips.
    modules = ["vendor/htm-preact.js", *sorted(path.name for path in STATIC.glob("*.js"))]
    preloads = "\n".join(f'<link rel="modulepreload" href="$up/ui/{name}">' for name in modules)
    text = Template((STATIC / "page.html").read_text("utf-8").replace("$preloads", preloads))

    def page(depth: int) -> HTMLResponse:
        # By relative addresses it works behind a proxy that takes a path prefix away, even one that does not say so.
        up = "/".join([".."] * depth) or "."
        return HTMLResponse(text.substitute(up=up), headers=_SAFE | {"content-security-policy": _policy(files_from())})

    @router.get("/")
    def root(request: Request) -> Response:
        answer = page(0) if _asks_for_html(request) else plain(request)
        answer.headers["vary"] = "accept"
        return answer

    @router.get("/playground")
    @router.get("/history")
    @router.get("/keys")
    def first() -> Response:
        return page(0)

    @router.get("/playground/{endpoint:path}")
    def playground(endpoint: str) -> Response:
        return page(1 + endpoint.count("/"))

    return router


def assets() -> Mount:
    """What the pages load."""
    return Mount("/ui", GZipMiddleware(_Safe(StaticFiles(directory=STATIC))))


def _asks_for_html(request: Request) -> bool:
    """Browsers name it; curl, httpx and fetch send `*/*`."""
    return "text/html" in request.headers.get("accept", "")


class _Safe:
    """Adds to every answer what the page itself says about types, referrers and caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.encode(), value.encode()) for name, value in _SAFE.items()]
            await send(message)

        await self._app(scope, receive, said)
