"""Flags that several commands share, and what they lead to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.arguments import UnknownModelError, resolve
from models.registry import ModelSpec
from models.tuning import parse_tuning
from server.cli.failures import USAGE, CommandError
from server.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 1000
"""More than any row has."""

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the store, pictures and certificates.",
        show_default="data in the checkout, else ~/.local/share/fluxserve",
    ),
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings; flags and FLUXSERVE_* beat it.", envvar="FLUXSERVE_CONFIG")
]
Tuning = typer.Option(
    help="Switches for speed, such as kernels=torch,fuse_mlp=off; see docs/speed.md.", show_default="by device"
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def settings_from(config: Path | None, **flags: Any) -> Settings:
    """The settings of this invocation. Raises: CommandError with exit status 2."""
    try:
        return load(
            {name: value or None if isinstance(value, list) else value for name, value in flags.items()}, config
        )
    except SettingsError as exc:
        raise CommandError(str(exc), USAGE) from exc


def spec_of(model: str, folders: Sequence[Path] = ()) -> ModelSpec:
    """What `--model` means. Args: folders: of `--model-dir`. Raises: CommandError with exit status 2."""
    try:
        return resolve(model, folders)
    except UnknownModelError as exc:
        raise CommandError(str(exc), USAGE) from exc


def check_tuning(text: str) -> None:
    """Raises: CommandError with exit status 2 if no worker would understand it."""
    try:
        parse_tuning(text)
    except ValueError as exc:
        raise CommandError(f"--tuning: {exc}", USAGE) from exc


def pixels(size: str, flag: str) -> tuple[int, int]:
    """(width, height) of a preset's name or WIDTHxHEIGHT. Raises: CommandError naming the flag."""
    from server.api.schemas.sizes import PRESETS

    if size in PRESETS:
        return PRESETS[size]
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if match is None:
        raise CommandError(f"{flag} {size}: give WIDTHxHEIGHT in pixels, or one of {', '.join(PRESETS)}", USAGE)
    return int(match[1]), int(match[2])


def table_console() -> Console:
    """Where a table goes: folded for a terminal, each row on one line for programs, which search lines."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal else Console(width=PIPED_COLUMNS)
