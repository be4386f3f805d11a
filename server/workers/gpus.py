"""What NVIDIA's library tells of the cards that workers use: memory, utilisation, power."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.workers.nvml import NvmlError, handle, open_nvml

logger = logging.getLogger("fluxserve.gpus")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One card at one moment. What it does not tell (a slice of a card has no power of its own) is not in `values`.

    Args: values: memory_used_bytes, memory_total_bytes, utilization_ratio (0 to 1), power_watts, energy_joules,
        temperature_celsius.
    """

    device: str
    values: dict[str, float]


@dataclass
class Gpus:
    """The cards of these devices. Without the library, a driver or a card there is nothing to read, and no error.

    Args: devices: workers' names; only those of CUDA are cards.
    """

    devices: Sequence[str]
    open: Callable[[], Any] = open_nvml
    _nvml: Any = None
    _cards: dict[str, Any] | None = field(default=None)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> list[GpuReading]:
        """One reading a card. Takes milliseconds."""
        with self._reading:
            if self._cards is None:
                self._cards = self._find()
            return [GpuReading(device, self._values(card)) for device, card in self._cards.items()]

    def _find(self) -> dict[str, Any]:
        wanted = [device for device in self.devices if device.startswith("cuda")]
        if not wanted:
            return {}
        try:
            self._nvml = self.open()
        except NvmlError as exc:
            logger.info("no figures of GPUs in /metrics: %s", exc)
            return {}
        found = {}
        for device in wanted:
            try:
                found[device] = handle(self._nvml, device)
            except self._nvml.NVMLError as exc:
                logger.info("no figures of %s in /metrics: %s", device, exc)
        return found

    def _values(self, card: Any) -> dict[str, float]:
        nvml = self._nvml
        questions: dict[str, Callable[[], float]] = {
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(card).used,
            "memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(card).total,
            "utilization_ratio": lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100,
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
            "energy_joules": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3,
            "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
        }
        values = {}
        for name, ask in questions.items():
            try:
                values[name] = float(ask())
            except nvml.NVMLError:
                continue  # this card has none
        return values
