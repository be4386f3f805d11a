"""NVIDIA's management library, where there is one: opened without torch, cards named as CUDA names them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class NvmlError(Exception):
    """It has nothing to tell; the message is one sentence that says why."""


def open_nvml() -> Any:
    """The library, ready for calls. Raises: NvmlError."""
    try:
        nvml: ModuleType = importlib.import_module("pynvml")
    except ImportError as exc:
        raise NvmlError("nvidia-ml-py is not installed (pip install nvidia-ml-py)") from exc
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        raise NvmlError(f"the NVIDIA driver does not answer ({exc})") from exc
    return nvml


def handle(nvml: Any, device: str, environ: Mapping[str, str] = os.environ) -> Any:
    """NVML's handle of `cuda:1`, which counts only the cards that CUDA_VISIBLE_DEVICES lets through.

    Raises: nvml.NVMLError."""
    index = int(device.partition(":")[2] or 0)
    visible = [word.strip() for word in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    name = visible[index] if index < len(visible) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
