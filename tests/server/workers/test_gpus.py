"""Figures of GPUs: what the library tells, and nothing, without an error, where it tells nothing."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from server.workers.gpus import Gpus
from server.workers.nvml import NvmlError


class Nvml:
    """The calls of pynvml that are made, for one card without a power meter; the other index is no card."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As pynvml's."""

    class _Memory:
        used, total = 5 << 30, 80 << 30

    class _Rates:
        gpu, memory = 97, 40

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise self.NVMLError("no such card")
        return "card 0"

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> _Memory:
        return self._Memory()

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> _Rates:
        return self._Rates()

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        return 12_500

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        return 61


def test_a_card_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = Gpus(["cuda:0", "cuda:1", "cpu"], Nvml)
    (reading,) = gpus.read()
    assert (reading.device, reading.values) == (
        "cuda:0",
        {
            "memory_used_bytes": 5 << 30,
            "memory_total_bytes": 80 << 30,
            "utilization_ratio": 0.97,
            "energy_joules": 12.5,
            "temperature_celsius": 61.0,
        },
    )


def test_without_library_driver_or_card_there_is_nothing_and_no_error() -> None:
    def refuse() -> Any:
        raise NvmlError("no driver")

    gpus = Gpus(["cuda:0"], refuse)
    assert gpus.read() == gpus.read() == []
    assert Gpus(["cpu", "auto"], refuse).read() == []


def test_the_library_has_these_calls() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py comes with the extra `gpu`")
    for name, ours in inspect.getmembers(Nvml, inspect.isfunction):
        parameters = inspect.signature(getattr(pynvml, name)).parameters
        assert len(parameters) >= len(inspect.signature(ours).parameters) - 1
    assert pynvml.NVML_TEMPERATURE_GPU == Nvml.NVML_TEMPERATURE_GPU
