"""The ends that the platform itself gives a job, as the outcomes its caller will read."""

from __future__ import annotations

from server.jobs.store.job import JobStatus, Outcome

NO_METRICS = {"inference_time": None}


def _request_error(status: JobStatus, http_status: int, message: str, error_type: str) -> Outcome:
    """fal's shape for what the platform refused, lost or timed out."""
    body = {"detail": message, "error_type": error_type}
    return Outcome(status, http_status, body, error=message, error_type=error_type, metrics=dict(NO_METRICS))


def cancelled() -> Outcome:
    """The client asked for it."""
    return _request_error(JobStatus.CANCELLED, 499, "Request was cancelled by the client", "client_cancelled")


def disconnected() -> Outcome:
    """A run ended only because its connection did, as when the node restarts."""
    return _request_error(JobStatus.CANCELLED, 499, "The client's connection is gone", "client_disconnected")


def start_timeout() -> Outcome:
    """The caller's own start deadline passed; routes add the header that says so, by the error type."""
    message = "Request did not start within the time the client allowed"
    return _request_error(JobStatus.FAILED, 504, message, "request_timeout")


def runner_disconnected() -> Outcome:
    """The workers that ran it went away, and it may not run again."""
    message = "The worker stopped while running this request"
    return _request_error(JobStatus.FAILED, 503, message, "runner_disconnected")


def server_error(message: str) -> Outcome:
    """Out of device memory, a full disk: ours to repair, and worth repeating by the caller."""
    return _request_error(JobStatus.FAILED, 500, message, "runner_server_error")


def damaged() -> Outcome:
    """What was stored of it cannot be read any more."""
    return server_error("The stored request is damaged")


def model_error(message: str) -> Outcome:
    """This request failed in the model, and would fail again."""
    body = {"detail": [{"loc": ["body"], "msg": message, "type": "internal_server_error"}]}
    return Outcome(
        JobStatus.FAILED, 500, body, error=message, error_type="internal_server_error", metrics=dict(NO_METRICS)
    )
