"""Which devices the `device` setting means, found without importing torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_PROC_GPUS = Path("/proc/driver/nvidia/gpus")
_DEVICE_FILES = ("nvidia*", "nvhost*", "dxg", "kfd")
"""What drivers of GPUs that PyTorch calls cuda leave in /dev: NVIDIA, Tegra, Windows' subsystem for Linux, AMD."""


def devices(setting: str, gpus: int) -> tuple[str, ...]:
    """One name a worker: `auto` and `cuda` take every GPU, `cuda:0,2` these, `cpu,cpu` two workers on the CPU.

    Args: gpus: how many NVIDIA GPUs there are. With none, `auto` is left to the worker (it may find another kind).
    Raises: ValueError naming the part that is not a device.
    """
    if setting in ("auto", "cuda") and gpus:
        return tuple(f"cuda:{index}" for index in range(gpus))
    kind, _, indices = setting.partition(":")
    names = [f"{kind}:{index}" for index in indices.split(",")] if indices else setting.split(",")
    for name in names:
        kind, _, index = name.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (":" in name and not index.isdecimal()):
            raise ValueError(f"{name!r} in the device setting {setting!r} is no device")
    return tuple(names)


def groups(names: Sequence[str], parallel: int) -> tuple[str, ...]:
    """Devices by twos, fours or eights, one name a worker (`cuda:0,cuda:1`) that shares every step out over its own.

    One CPU alone stands for as many. Raises: ValueError in one sentence if they do not come out even.
    """
    if parallel > 1 and tuple(names) == ("cpu",):
        names = ("cpu",) * parallel
    if len(names) % parallel or (parallel > 1 and "auto" in names):
        raise ValueError(
            f"--parallel {parallel} shares each step out over {parallel} devices, and these are {len(names)}: "
            f"{', '.join(names)}; name them, for example --device cuda:0,1"
        )
    return tuple(",".join(names[first : first + parallel]) for first in range(0, len(names), parallel))


def certainly_absent(setting: str, gpus: int, dev_folder: Path = Path("/dev")) -> str | None:
    """The first device of the setting that this machine cannot have; None where only a worker can tell.

    Args: gpus: as counted by `count_gpus`, which knows NVIDIA's driver alone.
    """
    if not gpus and any(next(dev_folder.glob(pattern), None) for pattern in _DEVICE_FILES):
        return None
    wanted = [name for name in devices(setting, gpus) if name.startswith("cuda")]
    return next((name for name in wanted if int(name.partition(":")[2] or 0) >= gpus), None)


def count_gpus(environ: Mapping[str, str] = os.environ, proc_folder: Path = _PROC_GPUS) -> int:
    """NVIDIA GPUs that a worker started from here would see; 0 if there is no driver."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA stops at the first invalid entry; -1 is the usual way to say none.
        named = [entry.strip() for entry in visible.split(",") if entry.strip()]
        return named.index("-1") if "-1" in named else len(named)
    if proc_folder.is_dir():
        return len(list(proc_folder.iterdir()))
    return _count_by_tool()


def _count_by_tool() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
