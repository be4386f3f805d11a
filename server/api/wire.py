"""A stored job in fal's words: the one place where our states become its three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.api.errors import MODEL_ERROR_HEADERS, request_error_headers
from server.api.paths import app_root
from server.files.outputs import FILES_PREFIX
from server.jobs.store.accounts import billable_units, is_cached
from server.jobs.store.job import Job, JobState, JobStatus, Outcome

Sign = Callable[[str], str]
"""Makes the relative address of a file one that can be handed out (see `Objects.signed`)."""

_WIRE = {
    JobStatus.QUEUED: "IN_QUEUE",
    JobStatus.RUNNING: "IN_PROGRESS",
    JobStatus.COMPLETED: "COMPLETED",
    JobStatus.FAILED: "COMPLETED",
    JobStatus.CANCELLED: "COMPLETED",
}
_WORTH_REPEATING = frozenset({500, 502, 503, 504})


def addresses(base: str, endpoint: str, job_id: str) -> dict[str, str]:
    """The three follow-up addresses below `base`, the queue area as the caller reaches it."""
    response = f"{base}/{app_root(endpoint)}/requests/{job_id}"
    return {"response_url": response, "status_url": f"{response}/status", "cancel_url": f"{response}/cancel"}


def submit_body(base: str, endpoint: str, job_id: str, position: int | None) -> dict[str, Any]:
    """The answer to a submit; always `IN_QUEUE`, even if the job has ended already."""
    return {
        "status": "IN_QUEUE",
        "request_id": job_id,
        **addresses(base, endpoint, job_id),
        "queue_position": position or 0,
        "gateway_request_id": job_id,
    }


def status_body(base: str, job_id: str, state: JobState, logs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The status object of a job.

    `logs` None means that they were not asked for. As on fal, every status has `logs` (null then) and `metrics`.
    """
    body: dict[str, Any] = {
        "status": _WIRE[state.status],
        "request_id": job_id,
        **addresses(base, state.endpoint, job_id),
    }
    body |= {"logs": logs, "metrics": {}}
    if state.status is JobStatus.QUEUED:
        return body | {"queue_position": state.position or 0}
    if state.outcome is not None:
        body["metrics"] = {"inference_time": None} | state.outcome.metrics
        if state.outcome.error is not None:
            body["error"] = state.outcome.error
            body["error_type"] = state.outcome.error_type or "internal_error"
    return body


def status_code(state: JobState) -> int:
    """202 until the end, then 200: fal.apps looks at nothing else."""
    return 200 if state.status.is_finished else 202


def result(outcome: Outcome, origin: str, sign: Sign) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, body and headers of an ended job, the same at every reading and on a synchronous run, but for the
    signatures of addresses that end."""
    return outcome.http_status, absolute(outcome.body, origin, sign), _headers(outcome)


def _headers(outcome: Outcome) -> dict[str, str]:
    if outcome.status is JobStatus.COMPLETED:
        return {"x-fal-billable-units": str(billable_units(outcome))} | (
            {"x-fluxserve-cache": "hit"} if is_cached(outcome) else {}
        )
    if isinstance(outcome.body.get("detail"), list):
        return MODEL_ERROR_HEADERS if outcome.http_status == 422 else {"x-fal-retryable": "false"}
    kind = outcome.body.get("error_type") or outcome.error_type or "internal_error"
    headers = request_error_headers(kind, outcome.http_status in _WORTH_REPEATING and kind != "request_timeout")
    if kind == "request_timeout":
        # Deadlines come from the caller alone here, and clients repeat the call without this.
        headers["x-fal-request-timeout-type"] = "user"
    return headers


def result_body(
    images: Sequence[Mapping[str, Any]],
    has_nsfw_concepts: Sequence[bool],
    params: Mapping[str, Any],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """What fal's text-to-image endpoints answer; addresses of files are relative."""
    return {
        "images": [dict(image) for image in images],
        "timings": {"inference": timings.get("inference", 0.0)}
        | {name: timings[name] for name in ("prompt_expansion",) if name in timings},
        "seed": params["seed"],
        "has_nsfw_concepts": list(has_nsfw_concepts),
        "prompt": params["prompt"],
    }


def webhook_body(job: Job, sign: Sign) -> dict[str, Any]:
    """What is posted for an ended job: the body of its result, as its caller would fetch it."""
    assert job.outcome is not None
    origin = job.base_url.removesuffix("/queue")
    body: dict[str, Any] = {
        "request_id": job.id,
        "gateway_request_id": job.id,
        "status": "OK" if job.status is JobStatus.COMPLETED else "ERROR",
        "payload": absolute(job.outcome.body, origin, sign),
    }
    if job.status is not JobStatus.COMPLETED:
        body["error"] = f"Invalid status code: {job.outcome.http_status}"
    return body


def absolute(body: dict[str, Any], base: str, sign: Sign) -> dict[str, Any]:
    """A copy of a result body with every relative file address signed and made absolute: `base` + `/files/...`."""
    made: dict[str, Any] = _absolute(body, base, sign)
    return made


def _absolute(value: Any, base: str, sign: Sign) -> Any:
    if isinstance(value, dict):
        return {
            key: base + sign(item) if key == "url" and _is_file_address(item) else _absolute(item, base, sign)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_absolute(item, base, sign) for item in value]
    return value


def _is_file_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(FILES_PREFIX)
