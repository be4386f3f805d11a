"""Flags that several commands share, and the settings they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.failures import USAGE, CommandError
from server.settings import Settings, SettingsError, load

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the store, pictures and certificates.", show_default="data in the checkout"),
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings; flags and FLUXSERVE_* beat it.", envvar="FLUXSERVE_CONFIG")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def settings_from(config: Path | None, **flags: Any) -> Settings:
    """The settings of this invocation. Raises: CommandError with exit status 2."""
    try:
        return load(
            {name: value or None if isinstance(value, list) else value for name, value in flags.items()}, config
        )
    except SettingsError as exc:
        raise CommandError(str(exc), USAGE) from exc
