"""`fluxserve workers`: free the devices of a running server for other programs, and take them again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from server.cli import operator
from server.cli.operator import Key, Url
from server.cli.options import Config, DataDir, Json, settings_from
from server.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="List the workers of all nodes; let those of one server sleep, wake them.\n\n"
    "A worker that sleeps has freed its device; requests wait in the queue until it is woken. On a server with keys "
    "these commands need one with the scope admin.",
)
Device = Annotated[str | None, typer.Option(help="Only this one, such as cuda:0.", show_default="all")]


@app.command("list")
def list_(
    url: Url = None, key: Key = None, data_dir: DataDir = None, config: Config = None, as_json: Json = False
) -> None:
    """Show all nodes with their workers: name, device, state, what is in memory, and what runs since when."""
    nodes = operator.ask("GET", "/v1/nodes", url, key, settings_from(config, data_dir=data_dir).data_dir)["nodes"]
    if as_json:
        print(json.dumps({"nodes": nodes}))
    else:
        print("\n".join(line for node in nodes for line in _node_lines(node)))


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


def _node_lines(node: dict[str, Any]) -> list[str]:
    state = f"silent for {node['seen_s']:.0f} s (below: as it was then)" if node["silent"] else node["state"]
    callers = f", {node['callers']} open calls" if node["callers"] else ""
    first = f"{node['name']}  {state}  {node['url'] or 'address unknown'}  {node['version']}{callers}"
    return [first, *(line for worker in node["workers"] for line in _worker_lines(worker))]


def _worker_lines(worker: dict[str, Any]) -> list[str]:
    held = ", ".join(worker["loaded"]) or "nothing"
    first = f"  {worker['name']}  {worker['device']}  {worker['rest'] or worker['state']}  in memory: {held}"
    return [first, *(f"    {_run_line(run)}" for run in worker["holds"])]


def _run_line(run: dict[str, Any]) -> str:
    if run["began_at"] is None:
        return f"{run['request_id']}  waits there since {run['claimed_at'][:19]}Z"
    steps = f"  step {run['step']}/{run['num_steps']}" if run["step"] else ""
    return f"{run['request_id']}  runs since {run['began_at'][:19]}Z{steps}"


def _ask(
    url: str | None, key: str | None, settings: Settings, method: str, path: str, device: str | None = None
) -> list[dict[str, Any]]:
    """The workers, after what was asked for."""
    wanted = {} if device is None else {"device": device}
    workers: list[dict[str, Any]] = operator.ask(
        method, f"/v1/workers{path}", url, key, settings.data_dir, params=wanted
    )["workers"]
    return workers


def _show(workers: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"workers": workers}))
        return
    for worker in workers:
        held = ", ".join(worker["loaded"]) or "nothing"
        print(f"{worker['device']}  {worker['state']}  running {worker['running']}  in memory: {held}")
