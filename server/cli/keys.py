"""`fluxserve keys`: issue API keys, change, list and revoke them; a running server takes note within a second."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from server.cli.failures import ENVIRONMENT, USAGE, CommandError
from server.cli.options import Config, DataDir, Json, settings_from
from server.gateway.key_file import USUAL_SCOPES, IssuedKey, KeyFile, KeyFileError, KeyScope, check_name
from server.jobs.limits import BudgetRule, Limits

app = typer.Typer(no_args_is_help=True, help="Issue, change, list and revoke API keys.")

MB = 10**6
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="AMOUNT/PERIOD",
        help="What may be used with it, in UTC days or months: 5/day or 100/month in the currency of --prices, "
        "200mp/day in megapixels; repeatable.",
        show_default="no limit",
    ),
]


@app.command("new")
def new(
    name: Annotated[str, typer.Option(help="A word for people, such as who gets it.")] = "",
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option(help="What it may be used for; repeatable.", show_default="run, queue and files"),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Share requests, files and limits with the keys of this name.", show_default="its own"),
    ] = None,
    running: Annotated[int | None, typer.Option(min=1, help="Requests in workers at once; more wait.")] = None,
    waiting: Annotated[int | None, typer.Option(min=1, help="Waiting requests; one more gets 429.")] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Submits in a minute; more get 429.")] = None,
    storage_mb: Annotated[int | None, typer.Option(min=1, help="MB of results and uploads that are kept.")] = None,
    budget: Budgets = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print a fresh key in fal's form (id:secret), this once: only its digest is stored, in the data folder.

    From the first key on the server of that folder asks for one.
    """
    limits = Limits(running, waiting, per_minute, _bytes(storage_mb))
    _check_name(name)
    try:
        key, issued = _file(data_dir, config).issue(name, tenant, scope or USUAL_SCOPES, limits, _budgets(budget))
    except KeyFileError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    print(json.dumps(_described(issued) | {"key": key}) if as_json else key)


@app.command("set")
def change(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part of the key before the colon.")],
    name: Annotated[str | None, typer.Option(help="A word for people, such as who has it.")] = None,
    running: Annotated[int | None, typer.Option(min=0, help="Requests in workers at once; 0 for no limit.")] = None,
    waiting: Annotated[int | None, typer.Option(min=0, help="Waiting requests; 0 for no limit.")] = None,
    per_minute: Annotated[int | None, typer.Option(min=0, help="Submits in a minute; 0 for no limit.")] = None,
    storage_mb: Annotated[int | None, typer.Option(min=0, help="MB that are kept; 0 for no limit.")] = None,
    budget: Budgets = None,
    no_budget: Annotated[bool, typer.Option("--no-budget", help="Take away the budgets that it has.")] = False,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give a key another name, other limits, or these budgets in the place of those it has; the rest stays.

    A limit of 0 takes the key's own away; the server's (`serve --key-running` and so on) holds then.
    """
    limits = {"running": running, "waiting": waiting, "per_minute": per_minute, "storage_bytes": _bytes(storage_mb)}
    given = {field: value or None for field, value in limits.items() if value is not None}
    if budget and no_budget:
        raise CommandError("give --budget or --no-budget, not both", USAGE)
    if name is None and not given and not budget and not no_budget:
        raise CommandError("nothing to set: give a name, a limit, --budget or --no-budget", USAGE)
    _check_name(name or "")
    budgets, key_id = _budgets(budget) if budget or no_budget else None, key_id.partition(":")[0]
    file = _file(data_dir, config)
    try:
        is_known = file.change(key_id, name, lambda own: replace(own, **given), budgets)
        shown = next((key for key in file.read() if key.id == key_id), None)
    except KeyFileError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    if not is_known or shown is None:
        raise _no_such_key(key_id)
    print(json.dumps(_described(shown)) if as_json else f"set: {key_id}")


@app.command("list")
def list_keys(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Print the issued keys without their secrets, the newest last."""
    try:
        keys = _file(data_dir, config).read()
    except KeyFileError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    if as_json:
        print(json.dumps({"keys": [_described(key) for key in keys]}))
        return
    for key in keys:
        print(_line(key))


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part of the key before the colon.")],
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """End a key for good; what it has submitted runs on."""
    try:
        has_ended = _file(data_dir, config).revoke(key_id.partition(":")[0])
    except KeyFileError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    if not has_ended:
        raise _no_such_key(key_id.partition(":")[0])
    print(json.dumps({"revoked": key_id}) if as_json else f"revoked: {key_id}")


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * MB


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as exc:
        raise CommandError(f"--name: {exc}", USAGE) from exc


def _no_such_key(key_id: str) -> CommandError:
    return CommandError(f"no key {key_id} is in use; `fluxserve keys list` shows them")


def _budgets(texts: list[str] | None) -> list[BudgetRule]:
    try:
        rules = [BudgetRule.parse(text) for text in texts or ()]
    except ValueError as exc:
        raise CommandError(f"--budget {exc}", USAGE) from exc
    if any(rule.unit == "money" for rule in rules):
        typer.echo("a budget in money bounds nothing where the server has no price: see `serve --prices`", err=True)
    return rules


def _file(data_dir: Any, config: Any) -> KeyFile:
    return KeyFile(settings_from(config, data_dir=data_dir).key_file)


def _described(key: IssuedKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"digest"})


def _line(key: IssuedKey) -> str:
    state = "in use" if key.revoked_at is None else f"revoked {_day(key.revoked_at)}"
    tenant = "" if key.tenant == key.id else f"  tenant {key.tenant}"
    return f"{key.id}  {_day(key.created_at)}  {state}  {','.join(key.scopes)}{tenant}  {key.name}".rstrip()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
