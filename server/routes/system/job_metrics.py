"""What Prometheus is told of requests that have ended: how many, how they ended, how long they waited and ran.

Labels are endpoint, end, model and the class of key (`issued`, `configured`, `open`): never a prompt, an id, a key or
a size.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.gateway.keys import CONFIGURED
from server.jobs.store.accounts import billable_units, is_cached
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job, JobStatus

_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 900)


class JobMetrics:
    """Counts ended jobs. Args: read: the row of an id, or None."""

    def __init__(self, registry: CollectorRegistry, read: Callable[[str], Job | None]) -> None:
        self._read = read
        self._ended = Counter(
            "fluxserve_requests", "Requests that ended, by how", ["endpoint", "status"], registry=registry
        )
        whose = ["endpoint", "model", "key_class"]
        self._images = Counter("fluxserve_images", "Pictures in results", whose, registry=registry)
        self._units = Counter(
            "fluxserve_megapixels", "Megapixels in results, each picture rounded up", whose, registry=registry
        )
        self._device_s = Counter(
            "fluxserve_device_seconds", "Time of devices that requests had for themselves", whose, registry=registry
        )
        self._cached = Counter(
            "fluxserve_cached_requests", "Requests answered from stored pictures", ["endpoint"], registry=registry
        )
        self._waited = Histogram(
            "fluxserve_request_queue_seconds",
            "From the submit to the start of the run that ended it",
            ["endpoint"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._ran = Histogram(
            "fluxserve_request_run_seconds",
            "From that start to the end",
            ["endpoint"],
            buckets=_BUCKETS_S,
            registry=registry,
        )

    def note_end(self, job_id: str) -> None:
        """A job has ended. Any thread; never raises: it is called where ends are recorded."""
        try:
            job = self._read(job_id)
        except StoreError:
            return  # the store says so itself, in /health
        if job is None or job.outcome is None:
            return
        self._ended.labels(job.endpoint, job.status.value).inc()
        if is_cached(job.outcome):
            self._cached.labels(job.endpoint).inc()
        self._note_times(job)
        if job.status is JobStatus.COMPLETED:
            whose = job.endpoint, job.model or "", key_class(job.key_id)
            self._images.labels(*whose).inc(len(job.outcome.body.get("images", ())))
            self._units.labels(*whose).inc(billable_units(job.outcome))
            self._device_s.labels(*whose).inc(job.outcome.metrics.get("device_time") or 0.0)

    def _note_times(self, job: Job) -> None:
        if job.started_at is None or job.finished_at is None:
            return
        self._waited.labels(job.endpoint).observe(max(0.0, job.started_at - job.created_at))
        self._ran.labels(job.endpoint).observe(max(0.0, job.finished_at - job.started_at))


def key_class(key_id: str) -> str:
    """What kind of key it was asked for with: one that was issued, one of the settings, or none."""
    if not key_id:
        return "open"
    return "configured" if key_id.startswith(CONFIGURED) else "issued"
