"""`fluxserve drain`: empty one worker or one node before it is taken away, without a request that fails."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from server.cli import operator
from server.cli.failures import FAILED, CommandError
from server.cli.operator import Key, Url
from server.cli.options import DataDir, Json, settings_from

LOOK_S = 0.5


def drain(
    name: Annotated[str, typer.Argument(help="Of a node or a worker: `fluxserve workers list` shows them.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take requests again.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is empty; 0 does not wait.")] = 600.0,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let a node or a worker take no more requests, and say when it is empty. What it has not begun goes to others.

    A node that drains is not ready (/readyz) and still answers. It is empty when nothing runs there and no call waits:
    stop it then. Once it is started again it takes requests.
    """
    folder = settings_from(None, data_dir=data_dir).data_dir
    operator.ask("DELETE" if undo else "PUT", f"/v1/drains/{quote(name)}", url, key, folder)
    state: dict[str, Any] = {"name": name, "state": "taking requests"} if undo else {"name": name, "state": "draining"}
    if not undo and timeout:
        state = _until_empty(name, timeout, url, key, folder, quiet=as_json)
    print(json.dumps(state) if as_json else f"{name}: {state['state']}")


def _until_empty(
    name: str, timeout_s: float, url: str | None, key: str | None, folder: Path, quiet: bool
) -> dict[str, Any]:
    """Raises: CommandError when it is not empty in time, or does not answer."""
    deadline, said = time.monotonic() + timeout_s, ""
    while True:
        found = _found(name, operator.ask("GET", "/v1/nodes", url, key, folder)["nodes"])
        if found["state"] in ("drained", "gone"):
            return found
        if found["state"] == "silent":
            raise CommandError(f"{name} does not report: what it holds goes to others when its lease ends", FAILED)
        line = f"{name}: {found['holds']} requests, {found['callers']} open calls"
        if line != said and not quiet:
            typer.echo(line, err=True)
        said = line
        if time.monotonic() >= deadline:
            raise CommandError(f"{line} after {timeout_s:g} s; it goes on draining (--undo takes it back)", FAILED)
        time.sleep(LOOK_S)


def _found(name: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the node or worker of this name is."""
    for node in nodes:
        held = {worker["name"]: worker for worker in node["workers"]}
        if name == node["name"] or name in held:
            about = held.get(name, node)
            workers = [about] if name in held else node["workers"]
            return {
                "name": name,
                "state": "silent" if node["silent"] else about["rest"] or "draining",
                "holds": sum(len(worker["holds"]) for worker in workers),
                "callers": about.get("callers", 0),
            }
    return {"name": name, "state": "gone", "holds": 0, "callers": 0}
