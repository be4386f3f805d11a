"""`fluxserve conform`: the numbered cases of fal's protocol, asked of any server that claims it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.failures import ENVIRONMENT, FAILED, USAGE, CommandError
from server.cli.options import Json
from server.settings import is_loopback

if TYPE_CHECKING:
    from server.conform.areas import Areas
    from server.conform.report import Verdict
    from server.conform.subject import Subject

ENDPOINT = "fal-ai/flux/schnell"
Place = Annotated[str | None, typer.Option(metavar="URL", help="Where this area is.", show_default="below URL")]


def conform(
    url: Annotated[str, typer.Argument(help="The server's address; https://fal.run for fal itself.")],
    endpoint: Annotated[str, typer.Option(help="One that makes a picture of a prompt.")] = ENDPOINT,
    picture_endpoint: Annotated[
        str | None, typer.Option(help="One that also takes an image_url, for two cases.", show_default=False)
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="What is drawn.", show_default="512x512 in 2 steps")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Sent as fal's clients do.", envvar="FAL_KEY")] = None,
    budget: Annotated[
        int | None, typer.Option(min=0, help="Pictures to be drawn at most; 0 asks what costs nothing.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Draw what the cases need, without asking.")] = False,
    only: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Such as 30,41-50.", show_default="all")] = None,
    run_url: Place = None,
    queue_url: Place = None,
    rest_url: Place = None,
    cdn_url: Place = None,
    authority: Annotated[
        Path | None, typer.Option("--ca", exists=True, dir_okay=False, help="A certificate to trust, too.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a server the numbered cases of fal's protocol and report by number. Exit status 1 if one differs.

    Some cases draw pictures. A server that is not on this machine may charge for them: then --yes or --budget is asked
    for, after the number of pictures was told.
    """
    from server.conform.report import as_json as report_json
    from server.conform.report import as_markdown as report_markdown
    from server.conform.report import pictures, summary, verdicts

    numbers = _numbers(only)
    places = {"run": run_url, "queue": queue_url, "rest": rest_url, "cdn": cdn_url}
    areas = _areas(url, places)
    _check_writable(markdown)
    if not (yes or budget is not None or _is_here(areas.run)):
        _ask_for_the_money(pictures(numbers), endpoint, areas.run)
    found: list[Verdict] = []
    with _subject(areas, endpoint, key, input_, picture_endpoint, authority) as subject:
        _reach(subject)
        for one in verdicts(subject, numbers, budget):
            found.append(one)
            if not as_json:
                print(one.line, flush=True)
    if markdown is not None:
        markdown.write_text(report_markdown(subject, found))
    print(json.dumps(report_json(subject, found)) if as_json else summary(found))
    if any(one.outcome == "differs" for one in found):
        raise typer.Exit(FAILED)


def _numbers(only: str | None) -> list[int]:
    from server.conform.report import NUMBERS

    if only is None:
        return list(NUMBERS)
    wanted: set[int] = set()
    for part in only.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise CommandError(f"--only {part}: give numbers, such as 30,41-50", USAGE)
        wanted |= set(range(int(first), int(last or first) + 1))
    if not wanted or not wanted <= set(NUMBERS):
        raise CommandError(f"--only: cases are numbered {NUMBERS[0]} to {NUMBERS[-1]}", USAGE)
    return sorted(wanted)


def _areas(url: str, places: dict[str, str | None]) -> Areas:
    from server.conform.areas import Areas

    for given in (url, *places.values()):
        if given is not None and not _is_address(given):
            raise CommandError(f"{given} is no address: give one with http:// or https://", USAGE)
    moved: dict[str, Any] = {name: place.rstrip("/") for name, place in places.items() if place is not None}
    return replace(Areas.of(url), **moved)


def _is_address(text: str) -> bool:
    import httpx

    try:
        parts = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def _subject(
    areas: Areas,
    endpoint: str,
    key: str | None,
    input_: str | None,
    picture_endpoint: str | None,
    authority: Path | None,
) -> Subject:
    from server.conform.subject import DEFAULT_INPUT, Subject

    try:
        drawn = dict(DEFAULT_INPUT) if input_ is None else json.loads(input_)
    except ValueError:
        drawn = None
    if not isinstance(drawn, dict) or "prompt" not in drawn:
        raise CommandError("--input must be a JSON object with a prompt", USAGE)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise CommandError("--key must be printable ASCII", USAGE)
    try:
        return Subject(areas, endpoint.strip("/"), key, drawn, picture_endpoint, authority)
    except OSError as exc:  # ssl.SSLError is one
        raise CommandError(f"--ca {authority} holds no certificate (PEM)", USAGE) from exc


def _check_writable(page: Path | None) -> None:
    """Before anything is asked, and paid."""
    try:
        if page is not None:
            page.touch()
    except OSError as exc:
        raise CommandError(f"--markdown {page}: {exc.strerror}", USAGE) from exc


def _is_here(url: str) -> bool:
    import httpx

    return is_loopback(httpx.URL(url).host)


def _ask_for_the_money(pictures: int, endpoint: str, url: str) -> None:
    told = f"This asks {url} for up to {pictures} pictures of {endpoint}, which may be charged."
    if not sys.stdin.isatty():
        raise CommandError(f"{told} Say --yes, or --budget with a number of pictures", USAGE)
    if not typer.confirm(f"{told} Go on?"):
        raise typer.Exit(FAILED)


def _reach(subject: Subject) -> None:
    import httpx

    try:
        answer = subject.ask("POST", subject.run_url, json={})
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
        advice = "; trust its authority with --ca" if "CERTIFICATE_VERIFY_FAILED" in str(exc) else ""
        raise CommandError(f"the server does not answer: {exc}{advice}", ENVIRONMENT) from exc
    if answer.status_code in (401, 403):
        raise CommandError("the server wants a key: give it with --key or FAL_KEY", USAGE)
    if answer.status_code == 404:
        raise CommandError(f"{subject.endpoint} is not found at {subject.run_url}: see --endpoint and --run-url", USAGE)
