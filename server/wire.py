"""A stored job in fal's words: the one place where our states become its three."""

from __future__ import annotations

from typing import Any

from server.areas import Arrival
from server.errors import MODEL_ERROR_HEADERS, request_error_headers
from server.outputs import absolute
from server.paths import app_root
from server.store.base import JobStatus, Outcome, Standing

_WIRE = {
    JobStatus.QUEUED: "IN_QUEUE",
    JobStatus.RUNNING: "IN_PROGRESS",
    JobStatus.COMPLETED: "COMPLETED",
    JobStatus.FAILED: "COMPLETED",
    JobStatus.CANCELLED: "COMPLETED",
}
_WORTH_REPEATING = frozenset({500, 502, 503, 504})


def addresses(arrival: Arrival, endpoint: str, job_id: str) -> dict[str, str]:
    """The three follow-up addresses, under the name by which the caller reached us."""
    response = f"{arrival.base}/{app_root(endpoint)}/requests/{job_id}"
    return {"response_url": response, "status_url": f"{response}/status", "cancel_url": f"{response}/cancel"}


def submit_body(arrival: Arrival, endpoint: str, job_id: str, position: int | None) -> dict[str, Any]:
    """The answer to a submit; always `IN_QUEUE`, even if the job has ended already."""
    return {
        "status": "IN_QUEUE",
        "request_id": job_id,
        **addresses(arrival, endpoint, job_id),
        "queue_position": position or 0,
        "gateway_request_id": job_id,
    }


def status_body(arrival: Arrival, standing: Standing, logs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The status object of the job that `arrival` asks about.

    `logs` None means that they were not asked for (an empty list is sent: callers map over it).

    fal_client needs `queue_position` while waiting, `logs` from then on, and `metrics` at the end.
    """
    body: dict[str, Any] = {
        "status": _WIRE[standing.status],
        "request_id": arrival.request_id,
        **addresses(arrival, standing.endpoint, arrival.request_id),
    }
    if standing.status is JobStatus.QUEUED:
        return body | {"queue_position": standing.position or 0}
    body["logs"] = logs or []
    if standing.outcome is not None:
        body["metrics"] = {"inference_time": None} | standing.outcome.metrics
        if standing.outcome.error is not None:
            body["error"] = standing.outcome.error
            body["error_type"] = standing.outcome.error_type or "internal_error"
    return body


def status_code(standing: Standing) -> int:
    """202 until the end, then 200: fal.apps looks at nothing else."""
    return 200 if standing.status.is_finished else 202


def result(outcome: Outcome, origin: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, body and headers of an ended job, the same at every reading and on a synchronous run."""
    return outcome.http_status, absolute(outcome.body, origin), _headers(outcome)


def _headers(outcome: Outcome) -> dict[str, str]:
    if outcome.status is JobStatus.COMPLETED:
        return {}
    if isinstance(outcome.body.get("detail"), list):
        return MODEL_ERROR_HEADERS if outcome.http_status == 422 else {"x-fal-retryable": "false"}
    kind = outcome.body.get("error_type") or outcome.error_type or "internal_error"
    headers = request_error_headers(kind, outcome.http_status in _WORTH_REPEATING and kind != "request_timeout")
    if kind == "request_timeout":
        # Deadlines come from the caller alone here, and clients repeat the call without this.
        headers["x-fal-request-timeout-type"] = "user"
    return headers
