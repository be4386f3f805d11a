"""`fluxserve workers`: free the devices of a running server for other programs, and take them again."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import httpx
import typer

from server.cli.failures import ENVIRONMENT, CommandError
from server.cli.options import Config, DataDir, Json, settings_from
from server.http import running

app = typer.Typer(
    no_args_is_help=True,
    help="List a running server's workers, let them sleep, wake them.\n\n"
    "A worker that sleeps has freed its device; requests wait in the queue until it is woken. On a server with keys "
    "these commands need one with the scope admin.",
)
Url = Annotated[str | None, typer.Option(help="A server's address.", show_default="the one that runs here")]
Key = Annotated[str | None, typer.Option(help="The operator's key.", envvar="FAL_KEY")]
Device = Annotated[str | None, typer.Option(help="Only this one, such as cuda:0.", show_default="all")]
TIMEOUT_S = 30


@app.command("list")
def list_(
    url: Url = None, key: Key = None, data_dir: DataDir = None, config: Config = None, as_json: Json = False
) -> None:
    """Show every worker: its device, its state and what it holds."""
    _show(_ask(url, key, settings_from(config, data_dir=data_dir), "GET", ""), as_json)


@app.command()
def sleep(
    device: Device = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let workers end what they have begun, then free their devices until `wake`."""
    _show(_ask(url, key, settings_from(config, data_dir=data_dir), "POST", "/sleep", device), as_json)


@app.command()
def wake(
    device: Device = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let workers load their models again; requests that waited are drawn then."""
    _show(_ask(url, key, settings_from(config, data_dir=data_dir), "POST", "/wake", device), as_json)


def _ask(
    url: str | None,
    key: str | None,
    settings: Any,
    method: Literal["GET", "POST"],
    path: str,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """The workers, after what was asked for. Raises: CommandError."""
    here = running.read(settings.data_dir)
    address = url or (here.url if here else None)
    if address is None:
        raise CommandError("no server runs here: start one with `fluxserve serve`, or give --url", ENVIRONMENT)
    try:
        answer = httpx.request(
            method,
            f"{address.rstrip('/')}/v1/workers{path}",
            params={} if device is None else {"device": device},
            headers={} if key is None else {"authorization": f"Key {key}"},
            timeout=TIMEOUT_S,
        )
    except httpx.HTTPError as exc:
        raise CommandError(f"{address} does not answer: {exc}", ENVIRONMENT) from exc
    if answer.status_code != 200:
        raise CommandError(f"{address} answers {answer.status_code}: {_sentence(answer)}")
    workers: list[dict[str, Any]] = answer.json()["workers"]
    return workers


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _show(workers: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"workers": workers}))
        return
    for worker in workers:
        held = ", ".join(worker["loaded"]) or "nothing"
        print(f"{worker['device']}  {worker['state']}  running {worker['running']}  in memory: {held}")
