"""`fluxserve doctor`: can this machine serve, and if not, what is missing."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psutil
import typer

from models import control_groups, host_memory
from server.cli.checkup import devices_and_models
from server.cli.cluster_checkup import shared_workers
from server.cli.failures import ENVIRONMENT
from server.cli.finding import Finding
from server.cli.gpu_report import BUDGET_S, report_gpu
from server.cli.objects_checkup import shared_files
from server.cli.options import Config, DataDir, Json, settings_from
from server.cli.storage_checkup import certificate, storage
from server.cli.store_checkup import shared_store
from server.http import running
from server.settings import Settings
from server.workers import threads

MEMORY_SCARCE = 1.5e9
_AS_FOR_SERVE = "As for serve: looked at as well."


def doctor(
    data_dir: DataDir = None,
    config: Config = None,
    store: Annotated[str | None, typer.Option(help=_AS_FOR_SERVE, show_default=False)] = None,
    objects: Annotated[str | None, typer.Option(help=_AS_FOR_SERVE, show_default=False)] = None,
    s3_endpoint: Annotated[str | None, typer.Option(help="As for serve.", show_default=False)] = None,
    cluster: Annotated[str | None, typer.Option(help=_AS_FOR_SERVE, show_default=False)] = None,
    as_json: Json = False,
    gpu_report: Annotated[
        bool, typer.Option(help="Measure the GPU instead: all that is worth knowing of it, in one folder.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the GPU report.")] = Path("gpu-report"),
    budget: Annotated[float, typer.Option(help="Seconds that the GPU report may take.", min=1)] = BUDGET_S,
) -> None:
    """Check Python, PyTorch, devices, memory, disk, ports, models and the certificate; database, bucket and cluster."""
    shared = {"store": store, "objects": objects, "s3_endpoint": s3_endpoint, "cluster": cluster}
    settings = settings_from(config, data_dir=data_dir, **shared)
    if gpu_report:
        report_gpu(settings, out, budget, as_json)
        return
    findings = examine(settings)
    broken = any(finding.verdict == "broken" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not broken, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings)
    if broken:
        raise typer.Exit(ENVIRONMENT)


def examine(settings: Settings) -> list[Finding]:
    """Everything `serve` with these settings would need."""
    looks: list[Callable[[Settings], list[Finding]]] = [
        _python, devices_and_models, _memory, _processes, storage, shared_store, shared_files, shared_workers, _ports,
        certificate,
    ]  # fmt: skip
    return [finding for look in looks for finding in _looked(look, settings)]


def _looked(look: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    """What a look found, or that it could not look: the doctor goes on to the next."""
    try:
        return look(settings)
    except Exception as exc:
        subject = look.__name__.strip("_").replace("_", " ")
        return [Finding(subject, "broken", f"could not be looked at: {type(exc).__name__}: {exc}")]


def _python(_: Settings) -> list[Finding]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", "ok", detail)]


def _memory(_: Settings) -> list[Finding]:
    free, total = host_memory.available(), host_memory.total()
    limited = ", the limit of a container or service" if total < psutil.virtual_memory().total else ""
    detail = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free{limited}"
    if free < MEMORY_SCARCE:
        return [Finding("memory", "warning", detail, f"a worker needs about {MEMORY_SCARCE / 1e9:.1f} GB")]
    return [Finding("memory", "ok", detail)]


def _processes(_: Settings) -> list[Finding]:
    free = control_groups.startable()
    if free is None:
        return []
    detail = f"{free} more processes and threads may be started, the limit of a container or service"
    if free < threads.NEEDED:
        return [Finding("processes", "warning", detail, f"a server needs about {threads.NEEDED}: {threads.ADVICE}")]
    return [Finding("processes", "ok", detail)]


def _ports(settings: Settings) -> list[Finding]:
    note = running.read(settings.data_dir)
    if note is not None:
        addresses = ", ".join(url for url in (note.url, note.tls_url) if url)
        return [Finding("ports", "ok", f"fluxserve (process {note.pid}) serves {addresses}")]
    findings = []
    for flag, port in (("--port", settings.port), ("--tls-port", settings.tls_port)):
        if port and (reason := _why_not_bindable(settings.host, port)):
            findings.append(Finding("ports", "broken", f"{port}: {reason}", f"stop what listens there, or give {flag}"))
    return findings or [Finding("ports", "ok", f"{settings.port} and {settings.tls_port} of {settings.host} are free")]


def _why_not_bindable(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return None


def _show(findings: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "broken": "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict:8}[/]"
        advice = f" -> {finding.advice}" if finding.advice else ""
        console.print(f"{verdict} {finding.subject:12} ", end="")
        console.print(f"{finding.detail}{advice}", markup=False)
