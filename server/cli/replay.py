"""`fluxserve replay`: what was recorded before one server, asked of another, and the answers compared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.failures import FAILED, USAGE, CommandError
from server.cli.options import Json
from server.cli.record import areas_of
from server.settings import is_loopback

if TYPE_CHECKING:
    from server.conform.areas import Areas
    from server.shadow.recording import Entry, Recording
    from server.shadow.replay import Replayed


def replay(
    folder: Annotated[Path, typer.Argument(metavar="RECORDING", help="The folder that `fluxserve record` filled.")],
    against: Annotated[str, typer.Option(metavar="URL", help="The server that is asked now.")],
    key: Annotated[str | None, typer.Option(help="Sent as fal's clients do.", envvar="FAL_KEY")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="So many requests under way.")] = 1,
    max_bits: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Pictures further apart count as broken.", show_default="pictures never do"),
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with both pictures, too.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask a server elsewhere, which may charge, too.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a recording's requests again and compare answers, times and pictures. Exit status 1 if a program would break.

    An answer breaks a program if it ends otherwise, or lacks a field or has it in another type.
    """
    from server.shadow.recording import Recording, RecordingError
    from server.shadow.report import as_json as report_json
    from server.shadow.report import as_page, summary

    areas, recording = areas_of(against), Recording(folder)
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise CommandError(f"--html {page}: give a file in a folder that is there", USAGE)
    try:
        entries = recording.entries()
        if not entries:
            raise CommandError(f"{folder} holds no request", USAGE)
        _allow(areas, len(entries), yes)
        found = asyncio.run(_ask(recording, entries, areas, key, at_once, max_bits, not as_json))
    except RecordingError as exc:
        raise CommandError(str(exc), USAGE) from exc
    print(json.dumps(report_json(found, max_bits)) if as_json else summary(found, max_bits))
    if page is not None:
        page.write_text(as_page(found, max_bits))
    if any(each.comparison.breaks(max_bits) for each in found):
        raise typer.Exit(FAILED)


def _allow(areas: Areas, requests: int, yes: bool) -> None:
    import httpx

    host = httpx.URL(areas.run).host
    if not (yes or is_loopback(host)):
        raise CommandError(f"this asks {host} for {requests} requests, which may be charged: say --yes", USAGE)


async def _ask(
    recording: Recording,
    entries: list[Entry],
    areas: Areas,
    key: str | None,
    at_once: int,
    max_bits: int | None,
    shows: bool,
) -> list[Replayed]:
    from server.shadow.replay import replay as replay_all
    from server.shadow.report import line

    found: list[Replayed] = []
    async for each in replay_all(recording, entries, areas, key, at_once):
        found.append(each)
        if shows:
            print(line(len(found), each, max_bits), flush=True)
    return found
