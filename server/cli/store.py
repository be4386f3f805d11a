"""`fluxserve store`: move what a server keeps from one kind of store to the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.failures import ENVIRONMENT, FAILED, USAGE, CommandError
from server.cli.options import Json

if TYPE_CHECKING:
    from server.jobs.store.copying import Progress
    from server.jobs.store.sql import SqlStore

app = typer.Typer(no_args_is_help=True, help="Move requests between a file and a database that several nodes share.")

ADDRESSES = ("postgresql://", "postgres://")


@app.callback()
def _group() -> None:
    """Move requests between a file and a database that several nodes share."""


@app.command("copy")
def copy_(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="jobs.db of a data folder, or postgresql://...", show_default=False)
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; empty, or not there yet.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Copy every request, webhook, usage row, repeat and pause, read the copy again, and compare.

    In one transaction: when the command fails, or is killed, TO is as it was, and it may be given again. Stop the nodes
    first. Pictures, keys (keys.json) and secrets are files beside the store: take them along as they are.
    """
    from server.jobs.store.copying import CopyError, copy
    from server.jobs.store.errors import StoreError

    try:
        with (
            closing(_opened(source, must_exist=True)) as reading,
            closing(_opened(target)) as writing,
            _bars(quiet=as_json) as progress,
        ):
            copied = copy(reading, writing, progress)
    except StoreError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    except CopyError as exc:
        raise CommandError(f"{exc}; nothing was copied", FAILED) from exc
    except OSError as exc:
        raise CommandError(f"cannot open {exc.filename}: {exc.strerror}", ENVIRONMENT) from exc
    rows = {name: tally.rows for name, tally in copied.tallies.items()}
    if as_json:
        print(json.dumps({"rows": rows, "digest": copied.digest}))
    else:
        print("\n".join(f"{count:>9}  {name}" for name, count in rows.items()))
        print(f"verified: both are {copied.digest}")


def _opened(place: str, must_exist: bool = False) -> SqlStore:
    """Raises: StoreError, OSError; CommandError for what is no store's place."""
    from server.jobs.store.chosen import open_store
    from server.jobs.store.sql import SqlStore
    from server.jobs.store.sqlite import SqliteStore

    if place.startswith(ADDRESSES):
        store = open_store(place, Path())
        assert isinstance(store, SqlStore)
        return store
    if "://" in place:
        raise CommandError(f"{place.partition('://')[0]}://: give a file, or postgresql://user@host/database", USAGE)
    path = Path(place) / "jobs.db" if Path(place).is_dir() else Path(place)
    if must_exist and not path.exists():
        raise CommandError(f"there is no {path}: a server keeps its requests in jobs.db of its --data-dir", USAGE)
    return SqliteStore(path)


@contextmanager
def _bars(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr for every table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def step(table: str, done: int, of: int) -> None:
            if table not in tasks:
                tasks[table] = bars.add_task(table, total=of)
            bars.update(tasks[table], completed=done)

        yield step
