"""The `fluxserve` command: its subcommands and how they exit (0 done, 1 failed, 2 usage, 3 environment broken)."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from server.cli import (
    bench,
    certs,
    conform,
    doctor,
    drain,
    env,
    generate,
    jobs,
    keys,
    mcp,
    models,
    pull,
    record,
    release,
    replay,
    serve,
    store,
    top,
    webhooks,
    workers,
)
from server.cli.failures import CommandError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Your own fal: FLUX on your GPUs behind the fal.ai model API.",
)
app.command()(serve.serve)
app.command()(generate.generate)
app.command()(env.env)
app.command()(certs.certs)
app.command()(models.models)
app.command()(pull.pull)
app.command()(doctor.doctor)
app.command()(drain.drain)
app.command()(mcp.mcp)
app.command()(top.top)
app.command()(conform.conform)
app.command()(record.record)
app.command()(replay.replay)
app.command()(release.changelog)
app.command()(release.completion)
app.add_typer(bench.app, name="bench")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(store.app, name="store")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(workers.app, name="workers")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fluxserve {version('fluxserve')}\nwhat changed: fluxserve changelog")
        raise typer.Exit


@app.callback()
def _top(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and where its changes are."
        ),
    ] = False,
) -> None:
    """Your own fal: FLUX on your GPUs behind the fal.ai model API."""


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except CommandError as exc:
        print(f"fluxserve: {exc}", file=sys.stderr)
        sys.exit(exc.code)
