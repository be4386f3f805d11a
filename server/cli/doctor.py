"""`fluxserve doctor`: can this machine serve, and if not, what is missing."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import typer

from models.arguments import UnknownModelError, resolve
from models.checkpoint_files import LoadError
from models.memory import Preset, need, presumed_architecture, recommend
from server.cli.failures import ENVIRONMENT
from server.cli.models import is_here
from server.cli.options import Config, DataDir, Json, settings_from
from server.http import running, tls
from server.settings import Settings

Verdict = Literal["ok", "warning", "broken"]
DISK_BROKEN, DISK_SCARCE = 200e6, 2e9
MEMORY_SCARCE = 1.5e9

DEVICE_FACTS = """
import json, diffusers, torch, transformers
gpus = [
    {"name": p.name, "memory": p.total_memory, "capability": f"{p.major}.{p.minor}"}
    for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
]
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "gpus": gpus,
    "diffusers": diffusers.__version__, "transformers": transformers.__version__,
}))
"""
"""Run by a child: a broken driver then ends the child, not the doctor."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do when it is not ok."""

    subject: str
    verdict: Verdict
    detail: str
    advice: str = ""


def doctor(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Check Python, PyTorch, devices, memory, disk, ports, models and the certificate."""
    settings = settings_from(config, data_dir=data_dir)
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
        _python, _devices, _memory, _disk, _ports, _models, _certificate,
    ]  # fmt: skip
    return [finding for look in looks for finding in look(settings)]


def _python(_: Settings) -> list[Finding]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", "ok", detail)]


def _devices(settings: Settings) -> list[Finding]:
    try:
        child = subprocess.run([sys.executable, "-c", DEVICE_FACTS], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return [Finding("torch", "broken", "importing it takes more than 180 s", "look at the driver with nvidia-smi")]
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return [Finding("torch", "broken", reason, "install the locked dependencies again: make clean dev")]
    facts: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU only"
    versions = f"{facts['torch']} ({built}), diffusers {facts['diffusers']}, transformers {facts['transformers']}"
    found = [Finding("torch", "ok", versions), _device(settings.device, facts)]
    return found if settings.device == "cpu" else found + _fits(settings, facts["gpus"])


def _device(wanted: str, facts: dict[str, Any]) -> Finding:
    gpus: list[dict[str, Any]] = facts["gpus"]
    if wanted.startswith("cuda") and not gpus:
        return Finding("device", "broken", f"{wanted} was asked for and PyTorch sees no GPU", "use --device auto")
    if gpus and wanted != "cpu":
        described = ", ".join(f"{gpu['name']} ({gpu['memory'] / 1e9:.0f} GB)" for gpu in gpus)
        return Finding("device", "ok", described)
    return Finding("device", "ok", f"CPU with {facts['threads']} threads: enough for flux-shapes, not for FLUX.1")


def _fits(settings: Settings, gpus: list[dict[str, Any]]) -> list[Finding]:
    """Each model on the GPU with the least memory, as it is set up now, and what would make it fit."""
    if not gpus:
        return []
    gpu = min(gpus, key=lambda gpu: int(gpu["memory"]))
    preset = Preset(settings.quantization, settings.offload)
    return [fit for argument in settings.models if (fit := _fit(argument, preset, gpu)) is not None]


def _fit(argument: str, preset: Preset, gpu: dict[str, Any]) -> Finding | None:
    try:
        spec = resolve(argument)
        arch = presumed_architecture(spec)
    except (UnknownModelError, LoadError, KeyError):
        return None  # said where the models are looked at
    needed, memory = need(arch, preset).device, int(gpu["memory"])
    described = f"{spec.name} needs about {needed / 1e9:.1f} of {memory / 1e9:.1f} GB on {gpu['name']}"
    if needed <= memory:
        return Finding("fit", "ok", described)
    major, minor = map(int, str(gpu["capability"]).split("."))
    better = recommend(arch, memory, (major, minor))
    if better is None:
        return Finding("fit", "warning", described, "no setting makes it fit on this GPU")
    advice = f"{better.flags or 'no flags'} ({need(arch, better).device / 1e9:.1f} GB)"
    return Finding("fit", "warning", described, advice)


def _memory(_: Settings) -> list[Finding]:
    memory = psutil.virtual_memory()
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < MEMORY_SCARCE:
        return [Finding("memory", "warning", detail, f"a worker needs about {MEMORY_SCARCE / 1e9:.1f} GB")]
    return [Finding("memory", "ok", detail)]


def _disk(settings: Settings) -> list[Finding]:
    folder = next(parent for parent in (settings.data_dir, *settings.data_dir.parents) if parent.exists())
    try:
        free = shutil.disk_usage(folder).free
        probe = folder / ".fluxserve-doctor"
        probe.write_text("")
        probe.unlink()
    except OSError as exc:
        return [Finding("data folder", "broken", f"{folder}: {exc.strerror}", "give another with --data-dir")]
    detail = f"{settings.data_dir}, {free / 1e9:.1f} GB free"
    if free < DISK_BROKEN:
        return [Finding("data folder", "broken", detail, "free some space or give another --data-dir")]
    if free < DISK_SCARCE:
        return [Finding("data folder", "warning", detail, "pictures are kept for --retention-s seconds")]
    return [Finding("data folder", "ok", detail)]


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


def _models(settings: Settings) -> list[Finding]:
    return [_model(argument) for argument in settings.models]


def _model(argument: str) -> Finding:
    try:
        spec = resolve(argument)
    except UnknownModelError as exc:
        return Finding("model", "broken", str(exc))
    here = is_here(spec)
    if here is False and Path(spec.source).is_absolute():
        return Finding("model", "broken", f"{spec.name}: {spec.source} holds no model", "restore the folder")
    if here is False:
        gated = "; it is gated: accept its licence and set HF_TOKEN" if spec.gated else ""
        return Finding("model", "warning", f"{spec.name} is not on this machine", f"the first start fetches it{gated}")
    return Finding("model", "ok", f"{spec.name} ({spec.licence})")


def _certificate(settings: Settings) -> list[Finding]:
    if not settings.tls_port:
        return [Finding("certificate", "warning", "TLS is off", "the Python clients need it: give a --tls-port")]
    files = tls.files_of(settings.data_dir)
    if not files.server.exists():
        return [Finding("certificate", "ok", "made at the first start")]
    try:
        end = tls.read_certificate(files.server).not_valid_after_utc
    except (OSError, ValueError):
        return [Finding("certificate", "warning", f"{files.server} is damaged", "the next start makes a new one")]
    if end < datetime.now(UTC):
        return [Finding("certificate", "broken", f"expired on {end:%Y-%m-%d}", "restart the server: it renews it")]
    return [Finding("certificate", "ok", f"valid until {end:%Y-%m-%d}")]


def _show(findings: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "broken": "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict:8}[/]"
        advice = f" -> {finding.advice}" if finding.advice else ""
        console.print(f"{verdict} {finding.subject:12} ", end="")
        console.print(f"{finding.detail}{advice}", markup=False)
