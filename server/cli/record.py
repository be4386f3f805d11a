"""`fluxserve record`: a proxy in front of fal, or of any server like it, that keeps what a program asks and is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.failures import ENVIRONMENT, USAGE, CommandError
from server.cli.options import Config, DataDir, settings_from
from server.http.names import FAL_HOSTS

if TYPE_CHECKING:
    from server.conform.areas import Areas
    from server.http.serving import Listeners
    from server.http.tls import TlsFiles
    from server.shadow.recording import Entry

HOST = "127.0.0.1"
"""Nobody else may send requests, with whatever key, through this."""


def record(
    upstream: Annotated[
        str, typer.Argument(metavar="URL", help="Where requests go: fal itself, or any server of its API.")
    ] = "https://fal.run",
    out: Annotated[Path, typer.Option(help="The folder of the recording; what is there is added to.")] = Path(
        "recording"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Plain HTTP; 0 takes a free port.")] = 8900,
    tls_port: Annotated[
        int, typer.Option(min=0, max=65535, help="HTTPS, which Python's clients need; 0 turns it off.")
    ] = 8943,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Pass requests on and keep them with their answers and pictures, for `fluxserve replay`. Until Ctrl-C.

    Keys go through and are never kept; nor is any other header, or a field whose name says key, token or password.
    """
    from server.http import serving, tls

    areas = areas_of(upstream)
    _make(out)
    folder = settings_from(config, data_dir=data_dir).data_dir
    try:
        listeners = serving.listen(HOST, port, tls_port)
    except serving.PortInUseError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    try:
        files = tls.ensure(folder, tls.served_names(HOST, also=FAL_HOSTS)) if listeners.tls else None
        _serve(areas, out, listeners, files)
    except (tls.TlsError, OSError) as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    finally:
        listeners.close()


def _make(out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(f"{out} cannot be the folder of a recording: {exc.strerror}", USAGE) from exc


def areas_of(url: str) -> Areas:
    """Raises: CommandError with exit status 2 for what is no address."""
    import httpx

    from server.conform.areas import Areas

    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise CommandError(f"{url} is no address: {exc}", USAGE) from exc
    if parts.scheme not in ("http", "https") or not parts.host:
        raise CommandError(f"{url} is no address: give one such as https://fal.run or http://127.0.0.1:8000", USAGE)
    return Areas.of(url)


def _serve(areas: Areas, out: Path, listeners: Listeners, files: TlsFiles | None) -> None:
    from server.http import serving
    from server.shadow.recorder import Recorder
    from server.shadow.recording import Recording

    async def greet() -> None:
        print("\n".join(_lines(areas, out, listeners, files)), flush=True)

    app = Recorder(areas, Recording(out), _tell, lambda text: typer.echo(text, err=True)).app()
    serving.run(app, listeners, files, greet, dict.fromkeys(FAL_HOSTS, frozenset({443})))


def _tell(entry: Entry) -> None:
    print(f"{entry.status or 'lost'}  {entry.seconds:7.2f} s  {entry.mode:6} {entry.endpoint}", flush=True)


def _lines(areas: Areas, out: Path, listeners: Listeners, files: TlsFiles | None) -> list[str]:
    """What goes where, and how clients are led here."""
    from server.api.clients import CLIENTS, UNKNOWN_KEY, ServerAddress

    tls_url = f"https://{HOST}:{listeners.tls_port}" if listeners.tls_port else None
    reach = ServerAddress(f"http://{HOST}:{listeners.port}", tls_url, files.bundle if files else None, UNKNOWN_KEY)
    lines = [f"recording what goes to {areas.run} in {out}", "point your program here, with the key it has for there:"]
    for name in ("python", "js") if tls_url else ("js",):
        setup = CLIENTS[name](reach)
        lines += [f"  # {setup.title}", *(f"  {line}" for line in setup.lines)]
    return lines
