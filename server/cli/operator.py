"""What the operator's commands ask of a running server, over its API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.failures import ENVIRONMENT, CommandError
from server.http import running

Url = Annotated[str | None, typer.Option(help="A server's address.", show_default="the one that runs here")]
Key = Annotated[str | None, typer.Option(help="A key with the scope admin.", envvar="FAL_KEY")]
TIMEOUT_S = 60


def ask(method: str, path: str, url: str | None, key: str | None, data_dir: Path, **about: Any) -> Any:
    """The server's answer. Args: data_dir: tells of the server that runs here, where no address is given.

    Raises: CommandError with the server's own words.
    """
    import httpx  # other commands start without it

    headers = {"authorization": f"Key {key}"} if key else {}
    try:
        # Not by a proxy of the environment: it may be the server itself, for fal's clients.
        with httpx.Client(
            base_url=url or _running_here(data_dir), headers=headers, timeout=TIMEOUT_S, trust_env=False
        ) as http:
            answer = http.request(method, path, **about)
            body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
        raise CommandError(f"the server does not answer: {exc}", ENVIRONMENT) from exc
    if answer.is_error:
        error = body.get("error")
        raise CommandError(str(error.get("message") if isinstance(error, dict) else body.get("detail", body)))
    return body


def _running_here(data_dir: Path) -> str:
    here = running.read(data_dir)
    if here is None:
        raise CommandError("no server runs here: start one with `fluxserve serve`, or give --url", ENVIRONMENT)
    return here.url
