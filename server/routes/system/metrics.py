"""What Prometheus scrapes: counts of answers as they are given, and the node's state read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from server.jobs.store.base import Store
from server.jobs.store.errors import StoreError
from server.routes.system.job_metrics import JobMetrics
from server.routes.system.worker_metrics import of_gpus, of_workers
from server.workers.gpus import GpuReading, Gpus

_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})


class Metrics:
    """One registry an app, so that two servers in one process do not share numbers."""

    def __init__(
        self,
        health: Callable[[], dict[str, Any]],
        store: Store,
        gpus: Gpus,
    ) -> None:
        self._registry = CollectorRegistry()
        self.jobs = JobMetrics(self._registry, store.get)
        self._gpus = gpus
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
        self._node = _NodeState(store, health)
        self._registry.register(self._node)
        # prometheus_client's own look-up costs more than the counting.
        self._answer = lru_cache(maxsize=None)(self._answers.labels)
        self._second = lru_cache(maxsize=None)(self._seconds.labels)

    def observe(self, area: str, method: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._answer(area, method if method in _METHODS else "other", status).inc()
        self._second(area).observe(seconds)

    def read_gpus(self) -> None:
        """Ask the cards, for the next text: milliseconds that the event loop need not wait."""
        self._node.gpus = self._gpus.read()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _NodeState:
    """Jobs by state, what waits, and the load of every worker and card."""

    def __init__(self, store: Store, health: Callable[[], dict[str, Any]]) -> None:
        self._counts = store.counts
        self._read_backlog = store.backlog
        self._health = health
        self.gpus: list[GpuReading] = []

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("fluxserve_jobs", "Jobs in the store", labels=["status"])
        for status, count in self._counts().items():
            jobs.add_metric([status.value], count)
        yield jobs
        health = self._health()
        yield GaugeMetricFamily("fluxserve_ready", "1 when a worker is loaded", value=float(health["ready"]))
        yield from of_workers(health["workers"])
        yield from self._backlog()
        yield from of_gpus(self.gpus)

    def _backlog(self) -> Iterator[Metric]:
        try:
            backlog = self._read_backlog()
        except StoreError:
            return  # the store says so itself, in /health
        for name, about, value in (
            ("queue_oldest_seconds", "How long the oldest waiting request waits", backlog.oldest_s),
            ("webhooks_owed", "Webhooks that are still to be delivered", float(backlog.webhooks)),
            ("webhook_late_seconds", "How long the webhook that is due longest has been due", backlog.webhook_late_s),
        ):
            yield GaugeMetricFamily(f"fluxserve_{name}", about, value=value)
