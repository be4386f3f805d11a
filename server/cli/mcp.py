"""`fluxserve mcp`: the tools of `/mcp` over standard input and output, for agents that start servers themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from models.extras import how_to_install
from server.cli.failures import ENVIRONMENT, CommandError
from server.cli.options import DataDir, settings_from
from server.http import running


def mcp(
    url: Annotated[str | None, typer.Option(help="A server's address.", show_default="the one that runs here")] = None,
    key: Annotated[str | None, typer.Option(help="Its API key.", envvar="FAL_KEY")] = None,
    data_dir: DataDir = None,
) -> None:
    """Let an agent draw with a running server: MCP over stdin and stdout."""
    if importlib.util.find_spec("mcp") is None:
        raise CommandError(f"this needs an optional package: {how_to_install('mcp')}", ENVIRONMENT)
    from server.routes.mcp.tools import make_server

    address = url or _running_here(data_dir)
    headers = {"authorization": f"Key {key}"} if key else {}

    def client(ctx: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=address, headers=headers, timeout=60)

    make_server(client).run("stdio")


def _running_here(data_dir: Path | None) -> str:
    here = running.read(settings_from(None, data_dir=data_dir).data_dir)
    if here is None:
        raise CommandError("no server runs here: start one with `fluxserve serve`, or give --url", ENVIRONMENT)
    return here.url
