"""`fluxserve jobs`: see, cancel, hold back and move forward requests of a running server, by its operator's API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from server.cli import operator
from server.cli.failures import FAILED, USAGE, CommandError
from server.cli.operator import Key, Url
from server.cli.options import DataDir, Json, settings_from

app = typer.Typer(
    no_args_is_help=True,
    help="Look at everybody's requests, cancel many, hold a model or a key back, and move a request forward.\n\n"
    "By a running server's API: with keys, one with the scope admin is needed (--key or FAL_KEY).",
)
Id = Annotated[str, typer.Argument(metavar="REQUEST_ID", show_default=False)]
Tag = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable, all must hold.", show_default=False)]
Endpoint = Annotated[list[str] | None, typer.Option(help="An endpoint id; repeatable.", show_default=False)]
OfKey = Annotated[list[str] | None, typer.Option("--of-key", help="A key's id; repeatable.", show_default=False)]
OfModel = Annotated[list[str] | None, typer.Option("--model", help="A model's name; repeatable.", show_default=False)]
Status = Annotated[
    list[str] | None, typer.Option(help="queued, running, completed, ...; repeatable.", show_default=False)
]
PausedModel = Annotated[str | None, typer.Option("--model", help="A model's name.", show_default=False)]
PausedKey = Annotated[str | None, typer.Option("--of-key", help="A key's id.", show_default=False)]


@app.command("list")
def list_(
    status: Status = None,
    tag: Tag = None,
    endpoint: Endpoint = None,
    of_key: OfKey = None,
    model: OfModel = None,
    text: Annotated[str, typer.Option(help="Words of the prompt, or beginnings of words.", show_default=False)] = "",
    since: Annotated[str | None, typer.Option(help="A date or time, UTC.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="A date or time, UTC; not itself.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the newest.")] = 20,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print requests, the newest first, and what is held back."""
    query: dict[str, Any] = {"status": status, "tag": tag, "endpoint_id": endpoint, "auth_method": of_key}
    query |= {"model": model, "q": text, "start": since, "end": until}
    asked = {name: value for name, value in query.items() if value}
    found = _pages(limit, lambda page: _ask("GET", "/v1/jobs", url, key, data_dir, params=asked | page))
    found["paused"] = _ask("GET", "/v1/pauses", url, key, data_dir)["items"]
    print(json.dumps(found) if as_json else "\n".join([_table(found["items"]), *map(_pause_line, found["paused"])]))


@app.command()
def show(request_id: Id, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Print one request with its place in the queue, its error and its log."""
    found = _ask("GET", f"/v1/jobs/{quote(request_id, safe='')}", url, key, data_dir)
    print(json.dumps(found) if as_json else _described(found))


@app.command()
def delete(
    request_id: Annotated[list[str], typer.Argument(metavar="REQUEST_ID...", show_default=False)],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Delete ended requests with their pictures, for good. What was used stays counted."""
    kept: list[str] = []
    for each in request_id:
        try:
            answer = _ask("DELETE", f"/v1/models/requests/{quote(each, safe='')}/payloads", url, key, data_dir)
        except CommandError as exc:
            kept.append(str(exc))
            continue
        files = answer["cdn_delete_results"]
        told = json.dumps({"request_id": each} | answer) if as_json else f"deleted: {each}, {len(files)} files"
        print("\n".join([told, *(f"{file['link']}: {file['exception']}" for file in files if file["exception"])]))
    if kept:
        raise CommandError("; ".join(dict.fromkeys(kept)), FAILED)


@app.command()
def cancel(
    request_id: Annotated[list[str] | None, typer.Argument(metavar="[REQUEST_ID]...", show_default=False)] = None,
    tag: Tag = None,
    endpoint: Endpoint = None,
    of_key: OfKey = None,
    model: OfModel = None,
    status: Annotated[list[str] | None, typer.Option(help="queued or running.", show_default="both")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that wait or run.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Cancel these requests, or all that the filters find. What waits ends at once, what runs before its next step."""
    wanted = {"request_id": request_id, "tag": tag, "endpoint_id": endpoint, "auth_method": of_key, "model": model}
    body: dict[str, Any] = {name: value for name, value in (wanted | {"status": status}).items() if value}
    if not body and not everything:
        raise CommandError("say which: request ids, --tag, --endpoint, --of-key, --model, --status, or --all", USAGE)
    total = {"cancelled": 0, "requested": 0}
    has_more = True
    while has_more:
        answer = _ask("POST", "/v1/jobs/cancel", url, key, data_dir, json=body | {"all": everything})
        for name in total:
            total[name] += answer[name]
        # What runs stays found until its worker drops it: only progress asks for another round.
        has_more = answer["has_more"] and answer["cancelled"] + answer["requested"] > 0
    print(json.dumps(total) if as_json else f"{total['cancelled']} cancelled, {total['requested']} asked to stop")


@app.command()
def pause(
    model: PausedModel = None,
    of_key: PausedKey = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let requests of a model or a key wait until they are resumed, over restarts too. What runs goes on."""
    answer = _ask("PUT", _held(model, of_key), url, key, data_dir)
    print(json.dumps(answer) if as_json else f"paused: {answer['kind']} {answer['name']}")


@app.command()
def resume(
    model: PausedModel = None,
    of_key: PausedKey = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let them run again, in their order."""
    answer = _ask("DELETE", _held(model, of_key), url, key, data_dir)
    print(json.dumps(answer) if as_json else f"resumed: {answer['kind']} {answer['name']}")


@app.command()
def prioritise(
    request_id: Id, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Move a waiting request to the front of its key's line. Keys still take turns."""
    answer = _ask("POST", f"/v1/jobs/{quote(request_id, safe='')}/prioritise", url, key, data_dir)
    print(json.dumps(answer) if as_json else f"{request_id} is at place {answer['queue_position']}")


@app.command()
def requeue(
    request_id: Annotated[list[str], typer.Argument(metavar="REQUEST_ID...", show_default=False)],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Take running requests from their workers, to be drawn again; those that failed are asked for anew, with a new id.

    A request that may run only once ends then, if it has begun.
    """
    refused: list[str] = []
    for each in request_id:
        try:
            answer = _ask("POST", f"/v1/jobs/{quote(each, safe='')}/requeue", url, key, data_dir)
        except CommandError as exc:
            refused.append(str(exc))
            continue
        now = f"{each} is asked for anew as {answer['request_id']}" if answer["request_id"] != each else each
        print(json.dumps({"of": each} | answer) if as_json else f"{now}: {answer['status']}")
    if refused:
        raise CommandError("; ".join(dict.fromkeys(refused)), FAILED)


def _held(model: str | None, of_key: str | None) -> str:
    if (model is None) == (of_key is None):
        raise CommandError("give one of --model and --of-key", USAGE)
    kind, name = ("model", model) if model is not None else ("key", of_key)
    return f"/v1/pauses/{kind}/{quote(name or '', safe='')}"


def _ask(method: str, path: str, url: str | None, key: str | None, data_dir: Path | None, **about: Any) -> Any:
    return operator.ask(method, path, url, key, settings_from(None, data_dir=data_dir).data_dir, **about)


def _pages(limit: int, ask: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """So many of a list that comes a hundred at a time."""
    items: list[dict[str, Any]] = []
    page: dict[str, Any] = {"limit": min(limit, 100)}
    while True:
        answer = ask(page)
        items += answer["items"]
        if len(items) >= limit or answer["next_cursor"] is None:
            return {**answer, "items": items}
        page = {"limit": min(limit - len(items), 100), "cursor": answer["next_cursor"]}


def _table(items: list[dict[str, Any]]) -> str:
    if not items:
        return "no request is found"
    return "\n".join(_line(item) for item in items)


def _line(item: dict[str, Any]) -> str:
    sent = f"{item['sent_at'][:19]}Z"
    return f"{item['request_id']}  {item['status']:9}  {sent}  {item['endpoint_id']}  {_tags(item)}".rstrip()


def _described(item: dict[str, Any]) -> str:
    told = {name: value for name, value in item.items() if name != "logs"} | {"tags": _tags(item)}
    lines = [f"{name:15} {value}" for name, value in told.items() if value not in (None, "")]
    return "\n".join([*lines, "logs", *(f"  {line}" for line in item["logs"])])


def _tags(item: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in item["tags"].items())


def _pause_line(held: dict[str, Any]) -> str:
    return f"paused since {held['since'][:19]}Z: {held['kind']} {held['name']}"
