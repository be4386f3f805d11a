"""`fluxserve env`: the exact lines that point a fal client at this server; `eval "$(fluxserve env)"` works."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

import typer

from server.api import clients
from server.api.clients import ServerAddress, Setup
from server.cli.failures import CommandError
from server.cli.greeting import reach as reach_of
from server.cli.options import Config, DataDir, Json, settings_from
from server.http import running, tls
from server.http.names import FAL_HOSTS
from server.settings import Settings


class Client(StrEnum):
    """What `--client` takes; the table is `server.api.clients.CLIENTS`."""

    PYTHON = "python"
    PYTHON_PROXY = "python-proxy"
    FAL_APPS = "fal-apps"
    JS = "js"
    JS_MIDDLEWARE = "js-middleware"
    JS_SERVERLESS = "js-serverless"
    BROWSER = "browser"
    SERVER_PROXY = "server-proxy"
    CURL = "curl"
    NODE_PROXY = "node-proxy"
    HOSTS = "hosts"
    HUGGINGFACE = "huggingface"
    OPEN_WEBUI = "open-webui"
    COMFYUI_FAL = "comfyui-fal"
    AI_SDK = "ai-sdk"
    LITELLM = "litellm"
    OPENAI = "openai"


def env(
    client: Annotated[Client | None, typer.Option(help="Only this one.", show_default="all of them")] = None,
    host: Annotated[str | None, typer.Option(help="Name under which other machines reach the server.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print how to point each fal client at this server, its own settings included."""
    settings = settings_from(config, data_dir=data_dir)
    reach = _reach(settings, host)
    try:
        if client is not None:
            setup = clients.CLIENTS[client](reach)
            text = json.dumps(setup.values) if as_json else _text(setup)
        else:
            setups = _possible(reach)
            values = {name: setup.values for name, setup in setups.items()}
            text = json.dumps(values) if as_json else _all(setups)
    except clients.ClientSetupError as exc:
        raise CommandError(str(exc)) from exc
    print(text)
    if host is not None and not as_json:
        print("\n".join(f"# {line}" for line in _for_another_machine(settings, reach, host)))


def _for_another_machine(settings: Settings, reach: ServerAddress, host: str) -> list[str]:
    """What else a client elsewhere needs."""
    if reach.tls_url is None or reach.ca_bundle is None:
        return []
    lines = [f"copy {reach.ca_bundle} to that machine and let SSL_CERT_FILE and REQUESTS_CA_BUNDLE name the copy"]
    try:
        names = tls.names_in(tls.read_certificate(tls.files_of(settings.data_dir).server))
    except (OSError, ValueError):
        return lines
    if host.lower() not in names:
        lines.append(f"the certificate does not name {host}: serve with --public-url {reach.tls_url}")
    return lines


def _reach(settings: Settings, host: str | None) -> ServerAddress:
    """Where the running server is, or else where one with these settings will be."""
    reach = reach_of(settings, settings.port, settings.tls_port or None)
    note = running.read(settings.data_dir)
    if note is None:
        typer.echo(f"# no server runs on {settings.data_dir}: these lines fit one with the default ports", err=True)
    else:
        key = clients.UNKNOWN_KEY if note.is_protected and not settings.api_keys else reach.key
        reach = replace(reach, url=note.url, tls_url=note.tls_url, key=key)
    if host is not None:
        tls_url = _with_host(reach.tls_url, host) if reach.tls_url else None
        return replace(reach, url=_with_host(reach.url, host), tls_url=tls_url)
    if note is None and reach.ca_bundle is not None:
        # So that the printed file exists even before the first start.
        tls.ensure(settings.data_dir, tls.served_names(settings.host, also=FAL_HOSTS))
    return reach


def _with_host(url: str, host: str) -> str:
    parts = urlsplit(url)
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{parts.port}" if parts.port else name).geturl()


def _possible(reach: ServerAddress) -> dict[str, Setup]:
    """The setups of every client that can reach the server at all."""
    setups: dict[str, Setup] = {}
    for name, setup in clients.CLIENTS.items():
        with contextlib.suppress(clients.ClientSetupError):
            setups[name] = setup(reach)
    return setups


def _text(setup: Setup) -> str:
    mark = "//" if setup.lines[0].startswith(("import ", "const ")) else "#"
    notes = [f"{mark} {note}" for note in setup.notes]
    return "\n".join([*setup.lines, *notes])


def _all(setups: dict[str, Setup]) -> str:
    """The Python lines to eval; everything else as comments, so that the whole can be evalled."""
    paragraphs = []
    for name, setup in setups.items():
        mark = "" if name == Client.PYTHON else "# "
        lines = [f"# {setup.title}", *(mark + line for line in setup.lines), *(f"#   {note}" for note in setup.notes)]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
