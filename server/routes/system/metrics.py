"""What Prometheus scrapes: counts of answers as they are given, and the node's state read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from server.jobs.store.base import Job, JobStatus
from server.routes.system.job_metrics import JobMetrics

_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})


class Metrics:
    """One registry an app, so that two servers in one process do not share numbers."""

    def __init__(
        self,
        counts: Callable[[], dict[JobStatus, int]],
        health: Callable[[], dict[str, Any]],
        read: Callable[[str], Job | None],
    ) -> None:
        self._registry = CollectorRegistry()
        self.jobs = JobMetrics(self._registry, read)
        self._answers = Counter(
            "fluxserve_http_answers", "HTTP answers", ["area", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fluxserve_http_seconds",
            "Time to the end of an answer",
            ["area"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_NodeState(counts, health))
        # prometheus_client's own look-up costs more than the counting.
        self._answer = lru_cache(maxsize=None)(self._answers.labels)
        self._second = lru_cache(maxsize=None)(self._seconds.labels)

    def observe(self, area: str, method: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._answer(area, method if method in _METHODS else "other", status).inc()
        self._second(area).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _NodeState:
    """Jobs by state, and the load of every worker."""

    def __init__(self, counts: Callable[[], dict[JobStatus, int]], health: Callable[[], dict[str, Any]]) -> None:
        self._counts = counts
        self._health = health

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("fluxserve_jobs", "Jobs in the store", labels=["status"])
        for status, count in self._counts().items():
            jobs.add_metric([status.value], count)
        yield jobs
        health = self._health()
        yield GaugeMetricFamily("fluxserve_ready", "1 when a worker is loaded", value=float(health["ready"]))
        yield from self._workers(health["workers"])

    @staticmethod
    def _workers(workers: list[dict[str, Any]]) -> Iterator[Metric]:
        for name, help_text in (
            ("running", "Requests in the engine"),
            ("waiting", "Requests a worker holds that have not started"),
            ("load_ms", "Predicted milliseconds of work held"),
            ("steps", "Denoising steps done since the worker started"),
            ("restarts", "Times this worker was started again"),
        ):
            gauge = GaugeMetricFamily(f"fluxserve_worker_{name}", help_text, labels=["device"])
            for worker in workers:
                gauge.add_metric([str(worker["device"])], float(worker.get(name) or 0))
            yield gauge
        memory = GaugeMetricFamily("fluxserve_worker_memory_bytes", "Memory by kind", labels=["device", "kind"])
        for worker in workers:
            for kind, size in (worker.get("memory") or {}).items():
                memory.add_metric([str(worker["device"]), str(kind)], float(size))
        yield memory
