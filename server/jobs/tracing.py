"""Requests as OpenTelemetry traces, through node and worker, set up by the standard OTEL_* variables.

    fluxserve.request          from the submit to the end; a part of the caller's trace if it sent `traceparent`
      queue                    until a worker was chosen
      run                      from there on
        worker.encode, worker.denoise, worker.decode     as the worker measured them
        store                  encoding and storing the pictures, in the node

The spans are made when a request has ended, from its row and what its worker reported: nothing is held open meanwhile,
a node that dies loses no half of a trace, and a worker needs nothing installed. Without an address to send to nothing
is done, and nothing imported.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.extras import how_to_install
from server.jobs.live import LiveJobs, WorkerTimes
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job, JobStatus

logger = logging.getLogger("fluxserve.tracing")

ADDRESSES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PHASES = ("encode", "denoise", "decode")
MISSING = "OTEL_* asks for traces, but the SDK is not installed: " + how_to_install("otel")

Span = tuple[str, float, float]
"""Name, begin and end, in Unix seconds."""


class Tracing:
    """Sends a trace for every job that ends. Args: provider: the SDK's; read: the row of an id, or None."""

    def __init__(self, provider: Any, read: Callable[[str], Job | None], live: LiveJobs) -> None:
        self._api = importlib.import_module("opentelemetry.trace")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._propagator = propagation.TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("fluxserve")
        self._read = read
        self._live = live

    def note_end(self, job_id: str) -> None:
        """A job has ended. Any thread; never raises: it is called where ends are recorded."""
        try:
            job = self._read(job_id)
        except StoreError:
            return  # the store says so itself, in /health
        if job is not None and job.finished_at is not None:
            self._send(job, job.finished_at, self._live.times(job_id))

    def close(self) -> None:
        """Send what is left; may take as long as the collector does."""
        self._provider.shutdown()

    def _send(self, job: Job, ended_at: float, times: WorkerTimes | None) -> None:
        parent = self._propagator.extract({"traceparent": job.output.get("traceparent", "")})
        root = self._begin("fluxserve.request", job.created_at, parent, self._api.SpanKind.SERVER)
        for name, value in _attributes(job, times).items():
            root.set_attribute(f"fluxserve.{name}", value)
        if job.outcome is not None and job.status is not JobStatus.COMPLETED:
            root.set_status(self._api.StatusCode.ERROR, job.outcome.error or job.status.value)
        inside = self._api.set_span_in_context(root, parent)
        started_at = ended_at if job.started_at is None else job.started_at
        self._child(("queue", job.created_at, started_at), inside)
        if job.started_at is not None:
            run = self._begin("run", started_at, inside)
            for span in _phases(times, ended_at):
                self._child(span, self._api.set_span_in_context(run, inside))
            run.end(_ns(ended_at))
        root.end(_ns(ended_at))

    def _child(self, span: Span, context: Any) -> None:
        name, began_at, ended_at = span
        self._begin(name, began_at, context).end(_ns(max(began_at, ended_at)))

    def _begin(self, name: str, began_at: float, context: Any, kind: Any = None) -> Any:
        kind = self._api.SpanKind.INTERNAL if kind is None else kind
        return self._tracer.start_span(name, context, kind, start_time=_ns(began_at))


def open_tracing(
    read: Callable[[str], Job | None], live: LiveJobs, environ: Mapping[str, str] = os.environ
) -> Tracing | None:
    """Traces to where the environment says, by OTLP over HTTP; None if it says nothing, or turns them off."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if is_off or not any(environ.get(name) for name in ADDRESSES):
        return None
    try:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        batches = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        logger.warning(MISSING)
        return None
    name = environ.get("OTEL_SERVICE_NAME") or "fluxserve"
    # At the end the node itself shuts it down, and not the interpreter.
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(batches.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return Tracing(provider, read, live)


def _attributes(job: Job, times: WorkerTimes | None) -> dict[str, str | int]:
    """What describes it; never a prompt, a key or a label."""
    params = job.params or {}
    known = {
        "request_id": job.id,
        "endpoint": job.endpoint,
        "status": job.status.value,
        "http_status": None if job.outcome is None else job.outcome.http_status,
        "attempt": job.attempt,
        "worker": None if times is None else times.owner,
        **{name: params.get(name) for name in ("model", "width", "height", "num_inference_steps", "num_images")},
    }
    return {name: value for name, value in known.items() if value is not None}


def _phases(times: WorkerTimes | None, ended_at: float) -> Iterator[Span]:
    """What the worker did, one after the other, and what was left for the node."""
    if times is None or not times.timings:
        return
    began_at = times.began_at
    for name in PHASES:
        seconds = times.timings.get(name, 0.0) + (times.timings.get("safety", 0.0) if name == "decode" else 0.0)
        yield f"worker.{name}", began_at, began_at + seconds
        began_at += seconds
    yield "store", min(began_at, ended_at), ended_at


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
