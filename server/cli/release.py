"""`fluxserve changelog` and `fluxserve completion`: what came with this release, and the lines that a shell wants."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from server.api import release
from server.cli.failures import ENVIRONMENT, CommandError

PROGRAM = "fluxserve"


class Shell(StrEnum):
    """Shells that the command completes in."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def changelog(
    whole: Annotated[bool, typer.Option("--all", help="Of every release, not of this one alone.")] = False,
) -> None:
    """Print what changed in this release, in Markdown."""
    try:
        print(release.changelog() if whole else release.newest_changes(), end="")
    except OSError as exc:
        raise CommandError(f"the changelog was not installed: {exc.filename}", ENVIRONMENT) from exc


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that will read it.")]) -> None:
    """Print the script that completes commands and flags: source <(fluxserve completion bash)."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # re-exported without saying so

    print(get_completion_script(prog_name=PROGRAM, complete_var=f"_{PROGRAM.upper()}_COMPLETE", shell=shell))
