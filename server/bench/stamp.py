"""What a reader needs to judge and repeat a figure: versions, commit, machine, how busy it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("fluxserve", "torch", "diffusers", "transformers", "torchao", "triton")
_ROOT = Path(__file__).parents[2]


def stamp(driver: str | None = None) -> dict[str, Any]:
    """Of this machine, now. Args: driver: version of the GPU's, if it could be asked."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "commit": _commit(),
        "driver": driver,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "command": " ".join([Path(sys.argv[0]).name, *_without_key(sys.argv[1:])]),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the code that runs, with a mark if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _without_key(words: list[str]) -> list[str]:
    """The command line as it may be shown: a report is passed around."""
    shown = []
    hides_next = False
    for word in words:
        shown.append("***" if hides_next else "--api-key=***" if word.startswith("--api-key=") else word)
        hides_next = word == "--api-key"
    return shown
