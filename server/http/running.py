"""The note a serving process leaves in its data folder, so that other commands know its real addresses."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Running:
    """One serving process.

    Args: pid_started: Unix seconds, so that a process that inherited the number is not taken for it.
        url, tls_url: as a client on this machine reaches it (tls_url None: TLS is off).
        is_protected: whether it asks for a key.
    """

    pid: int
    pid_started: float
    url: str
    tls_url: str | None
    is_protected: bool


def write(data_dir: Path, running: Running) -> None:
    """Leave the note, replacing an older one."""
    temporary = _file(data_dir).with_suffix(".new")
    temporary.write_text(json.dumps(asdict(running)) + "\n")
    os.replace(temporary, _file(data_dir))


def read(data_dir: Path) -> Running | None:
    """The note of a process that is alive, or None."""
    try:
        running = Running(**json.loads(_file(data_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return running if _started_at(running.pid) == running.pid_started else None


def of_this_process(url: str, tls_url: str | None, is_protected: bool) -> Running:
    """The note for the calling process."""
    pid = os.getpid()
    return Running(pid, psutil.Process(pid).create_time(), url, tls_url, is_protected)


def own_address(host: str, port: int | None) -> str | None:
    """Where a server that listens on this host and port is found from elsewhere, as far as this machine knows."""
    if port is None:
        return None
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def remove(data_dir: Path) -> None:
    """Take the note away, if it is there."""
    _file(data_dir).unlink(missing_ok=True)


def _started_at(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _file(data_dir: Path) -> Path:
    return data_dir / "serving.json"
