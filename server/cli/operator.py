"""What the operator's commands ask of a running server, over its API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.failures import ENVIRONMENT, CommandError
from server.http import running

if TYPE_CHECKING:
    import httpx

Url = Annotated[str | None, typer.Option(help="A server's address.", show_default="the one that runs here")]
Key = Annotated[str | None, typer.Option(help="A key with the scope admin.", envvar="FAL_KEY")]
TIMEOUT_S = 60


def ask(method: str, path: str, url: str | None, key: str | None, data_dir: Path, **about: Any) -> Any:
    """The server's answer. Args: data_dir: tells of the server that runs here, where no address is given.

    Raises: CommandError with the server's own words.
    """
    answer = _answer(method, path, url, key, data_dir, **about)
    try:
        return answer.json()
    except ValueError as exc:
        raise CommandError(f"the server does not answer: {exc}", ENVIRONMENT) from exc


def ask_text(path: str, url: str | None, key: str | None, data_dir: Path) -> str:
    """The same where the answer is no JSON."""
    return _answer("GET", path, url, key, data_dir).text


def _answer(method: str, path: str, url: str | None, key: str | None, data_dir: Path, **about: Any) -> httpx.Response:
    import httpx  # other commands start without it

    headers = {"authorization": f"Key {key}"} if key else {}
    try:
        # Not by a proxy of the environment: it may be the server itself, for fal's clients.
        with httpx.Client(
            base_url=url or _running_here(data_dir), headers=headers, timeout=TIMEOUT_S, trust_env=False
        ) as http:
            answer = http.request(method, path, **about)
            body = answer.json() if answer.is_error else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
        raise CommandError(f"the server does not answer: {exc}", ENVIRONMENT) from exc
    if answer.is_error:
        error = body.get("error")
        raise CommandError(str(error.get("message") if isinstance(error, dict) else body.get("detail", body)))
    return answer


def _running_here(data_dir: Path) -> str:
    here = running.read(data_dir)
    if here is None:
        raise CommandError("no server runs here: start one with `fluxserve serve`, or give --url", ENVIRONMENT)
    return here.url
