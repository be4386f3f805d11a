"""Power, energy, clocks and what throttled them, from NVIDIA's management library while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from types import TracebackType
from typing import Any

from server.workers.nvml import NvmlError, handle

INTERVAL_S = 0.1
_REASON = "nvmlClocksThrottleReason"
_NO_REASON = ("All", "None", "GpuIdle")


def card(nvml: Any, device: str, environ: Mapping[str, str] = os.environ) -> Any:
    """NVML's handle of `cuda:1`, if it tells its power: a slice of a card (MIG) has none. Raises: NvmlError."""
    try:
        known = handle(nvml, device, environ)
        nvml.nvmlDeviceGetPowerUsage(known)
    except nvml.NVMLError as exc:
        raise NvmlError(f"NVML tells no power of {device} ({exc})") from exc
    return known


def driver_version(nvml: Any) -> str:
    """Of the kernel module."""
    version = nvml.nvmlSystemGetDriverVersion()
    return version.decode() if isinstance(version, bytes) else str(version)


@dataclass
class _Readings:
    watts: list[float] = field(default_factory=list)
    sm_mhz: list[float] = field(default_factory=list)
    memory_mhz: list[float] = field(default_factory=list)
    celsius: list[float] = field(default_factory=list)
    reasons: int = 0


class PowerMeter:
    """Samples one card from `with` to its end.

    Energy is the card's own counter where it has one (Volta and later), else mean power times time.
    """

    def __init__(self, nvml: Any, handle: Any, interval_s: float = INTERVAL_S) -> None:
        self._nvml, self._handle, self._interval_s = nvml, handle, interval_s
        self._readings = _Readings()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)
        self._joules = 0.0

    def __enter__(self) -> PowerMeter:
        self._joules = -self._counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._joules += self._counter()

    def figures(self, span_s: float, images: int) -> dict[str, Any]:
        """What was read. Args: span_s, images: what the energy is spread over."""
        readings = self._readings
        joules = self._joules or fmean(readings.watts) * span_s
        return {
            "energy_j": joules,
            "energy_per_image_j": joules / images if images else None,
            "mean_w": fmean(readings.watts),
            "max_w": max(readings.watts),
            "sm_mhz": {"min": min(readings.sm_mhz), "p50": median(readings.sm_mhz), "max": max(readings.sm_mhz)},
            "memory_mhz": median(readings.memory_mhz),
            "max_celsius": max(readings.celsius),
            "throttled_by": _names(self._nvml, readings.reasons),
        }

    def _counter(self) -> float:
        """Joules since the driver was loaded; 0 where the card does not count."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return 0.0

    def _sample(self) -> None:
        nvml, handle, readings = self._nvml, self._handle, self._readings
        while True:
            readings.watts.append(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
            readings.sm_mhz.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            readings.memory_mhz.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
            readings.celsius.append(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            readings.reasons |= nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            if self._ended.wait(self._interval_s):
                return


def _names(nvml: Any, reasons: int) -> list[str]:
    """The throttle reasons of a bit mask, in NVML's words; being idle is none."""
    words = {name.removeprefix(_REASON): getattr(nvml, name) for name in dir(nvml) if name.startswith(_REASON)}
    return sorted(word for word, bit in words.items() if word not in _NO_REASON and bit & reasons)
