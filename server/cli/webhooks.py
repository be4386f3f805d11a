"""`fluxserve webhooks`: what was delivered to whom, and once more if a receiver lost it; beside a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.failures import ENVIRONMENT, CommandError
from server.cli.options import Config, DataDir, Json, settings_from
from server.http import running

if TYPE_CHECKING:
    from server.jobs.store.deliveries import Redelivery, WebhookDelivery, WebhookTry
    from server.jobs.store.outbox import Execute

app = typer.Typer(
    no_args_is_help=True,
    help="Look at webhook deliveries, and make one again.\n\n"
    "A request submitted with ?fal_webhook=URL is posted there when it ends: ten tries in two hours, until the "
    "receiver answers 2xx. Every try is kept for 30 days.\n\n"
    "These commands read and write the data directory itself: they work on the server's machine only, need no key, "
    "and may be used while it runs.",
)
RequestId = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As the submit answered it.", show_default=False)]


@app.command("list")
def list_(
    request_id: Annotated[
        str | None,
        typer.Argument(metavar="REQUEST_ID", help="Show every try of this one.", show_default="the newest requests"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many requests at most.")] = 20,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show which receiver was sent which request, when, and what it answered.

    A state is delivered, the time of the next try, or given up: ten tries, a redirect, or a forbidden address.
    """
    from server.jobs.store import outbox

    folder = settings_from(config, data_dir=data_dir).data_dir
    with _open_store(folder) as execute:
        if request_id is None:
            deliveries = outbox.newest(execute, limit)
            print(json.dumps({"webhooks": [_facts(d) for d in deliveries]}) if as_json else _table(deliveries))
            return
        delivery, tries = outbox.of_job(execute, request_id), outbox.tries(execute, request_id)
        if delivery is None and not tries:
            raise CommandError(_sentence(outbox.refusal(execute, request_id), request_id))
    facts = _facts(delivery) if delivery else {"request_id": request_id}
    if as_json:
        print(json.dumps(facts | {"log": [asdict(entry) for entry in tries]}))
    else:
        print("\n".join([*_head(request_id, delivery), *(_line(entry) for entry in tries)]))


@app.command()
def redeliver(request_id: RequestId, data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Post the end of a request to its webhook again, whether it was delivered, given up or is still being tried.

    It goes out within a second: same request id and payload, signed anew, with ten tries of its own.

    A receiver tells by the id that it is a repetition.
    """
    from server.jobs.store import outbox
    from server.jobs.store.deliveries import Redelivery

    folder = settings_from(config, data_dir=data_dir).data_dir
    with _open_store(folder) as execute:
        outcome = outbox.order_again(execute, request_id, time())
        if outcome is not Redelivery.ORDERED:
            raise CommandError(_sentence(outcome, request_id))
        delivery = outbox.of_job(execute, request_id)
    assert delivery is not None
    is_running = running.read(folder) is not None
    if as_json:
        print(json.dumps(_facts(delivery) | {"server_is_running": is_running}))
        return
    when = "goes out now" if is_running else f"goes out when a server runs on {folder}"
    print(f"the webhook of {request_id} {when}, to {delivery.url}\nwatch it: fluxserve webhooks list {request_id}")


@contextmanager
def _open_store(folder: Path) -> Iterator[Execute]:
    """The outbox of a data folder. Raises: CommandError."""
    from server.jobs.store import outbox
    from server.jobs.store.errors import StoreError
    from server.jobs.store.opening import MIGRATIONS

    try:
        with outbox.open_beside_owner(folder / "jobs.db", len(MIGRATIONS)) as execute:
            yield execute
    except StoreError as exc:
        raise CommandError(f"{exc}", ENVIRONMENT) from exc


def _sentence(refusal: Redelivery | None, request_id: str) -> str:
    """Why there is no delivery to show or to make."""
    from server.jobs.store.deliveries import Redelivery

    if refusal is Redelivery.NO_WEBHOOK:
        return f"request {request_id} named no webhook: submit with ?fal_webhook=URL (in the clients: webhook_url)"
    if refusal is Redelivery.NOT_FINISHED:
        return f"request {request_id} has not ended yet: its webhook goes out when it does"
    if refusal is Redelivery.FORGOTTEN:
        return f"the result of request {request_id} is no longer kept (see --retention-s): there is nothing to post"
    return f"no request {request_id} is known here (--data-dir names another server's folder)"


def _state(delivery: WebhookDelivery) -> str:
    if delivery.is_delivered:
        return "delivered"
    return "given up" if delivery.due_at is None else f"next {_clock(delivery.due_at)}"


def _facts(delivery: WebhookDelivery) -> dict[str, Any]:
    return {
        "request_id": delivery.job_id,
        "url": delivery.url,
        "state": "pending" if delivery.due_at is not None else _state(delivery),
        "tries": delivery.tries,
        "next_try_at": delivery.due_at,
        "note": delivery.note,
    }


def _table(deliveries: list[WebhookDelivery]) -> str:
    if not deliveries:
        return "no ended request has named a webhook"
    rows = [("request", "state", "tries", "last answer", "receiver")]
    rows += [(d.job_id, _state(d), str(d.tries), d.note[:40] or "none yet", d.url) for d in deliveries]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _head(request_id: str, delivery: WebhookDelivery | None) -> list[str]:
    if delivery is None:
        return [f"request   {request_id} (its result is no longer kept)"]
    tries = "1 try" if delivery.tries == 1 else f"{delivery.tries} tries"
    return [f"request   {request_id}", f"receiver  {delivery.url}", f"state     {_state(delivery)}, after {tries}"]


def _line(entry: WebhookTry) -> str:
    return f"{_clock(entry.began_at)}  {entry.duration_s:6.2f} s  {entry.verdict:9}  {entry.note}"


def _clock(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
