"""What Prometheus is told of workers and of the cards that they use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pipelines.protocol.tally import BOUNDS, cumulative
from server.workers.gpus import GpuReading

Described = dict[str, Any]
"""One worker, as /health describes it."""

_GAUGES = {
    "running": ("running", 1.0, "Requests in the engine"),
    "waiting": ("waiting", 1.0, "Requests a worker holds that have not started"),
    "load_seconds": ("load_ms", 1e-3, "Predicted seconds of work held"),
}
_COUNTERS = {
    "steps": "Denoising steps since the worker started",
    "restarts": "Times this worker was started again",
}
_TALLIES = {
    "step_seconds": "How long denoising steps took, as the device measures it",
    "step_pictures": "Pictures that shared a denoising step",
}
_GPU_GAUGES = {
    "memory_used_bytes": "Memory of the card in use, by all programs",
    "memory_total_bytes": "Memory of the card",
    "utilization_ratio": "Share of the last moments in which the card computed",
    "power_watts": "Power that the card draws",
    "temperature_celsius": "Temperature of the card",
}


def of_workers(workers: Sequence[Described]) -> Iterator[Metric]:
    """Load, steps and memory of each."""
    for name, (key, scale, about) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"fluxserve_worker_{name}", about, labels=["device"])
        for worker in workers:
            gauge.add_metric([str(worker["device"])], float(worker.get(key) or 0) * scale)
        yield gauge
    for name, about in _COUNTERS.items():
        counter = CounterMetricFamily(f"fluxserve_worker_{name}", about, labels=["device"])
        for worker in workers:
            counter.add_metric([str(worker["device"])], float(worker.get(name) or 0))
        yield counter
    memory = GaugeMetricFamily("fluxserve_worker_memory_bytes", "Memory by kind", labels=["device", "kind"])
    for worker in workers:
        for kind, size in (worker.get("memory") or {}).items():
            memory.add_metric([str(worker["device"]), str(kind)], float(size))
    yield memory
    yield _lookups(workers)
    yield from _histograms(workers)


def of_gpus(readings: Sequence[GpuReading]) -> Iterator[Metric]:
    """What the cards tell of themselves; no series where none tells it."""
    for name, about in _GPU_GAUGES.items():
        if told := [reading for reading in readings if name in reading.values]:
            gauge = GaugeMetricFamily(f"fluxserve_gpu_{name}", about, labels=["device"])
            for reading in told:
                gauge.add_metric([reading.device], reading.values[name])
            yield gauge
    if told := [reading for reading in readings if "energy_joules" in reading.values]:
        counter = CounterMetricFamily("fluxserve_gpu_energy_joules", "Energy that the card has used", labels=["device"])
        for reading in told:
            counter.add_metric([reading.device], reading.values["energy_joules"])
        yield counter


def _lookups(workers: Sequence[Described]) -> Metric:
    about = "Prompts that were encoded already, adapters that were in memory, and those that were not"
    counter = CounterMetricFamily("fluxserve_worker_cache_lookups", about, labels=["device", "cache", "result"])
    for worker in workers:
        for cache, counts in (worker.get("lookups") or {}).items():
            for result, count in zip(("hit", "miss"), counts, strict=True):
                counter.add_metric([str(worker["device"]), cache, result], float(count))
    return counter


def _histograms(workers: Sequence[Described]) -> Iterator[Metric]:
    for name in BOUNDS:
        family = HistogramMetricFamily(f"fluxserve_{name}", _TALLIES[name], labels=["device"])
        for worker in workers:
            if counts := (worker.get("tally") or {}).get(name):
                family.add_metric([str(worker["device"])], *cumulative(name, counts))
        yield family
