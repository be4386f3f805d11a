"""What can go wrong, and how each of it is answered, in fal's two error shapes.

    WireError                  has a status, a body and headers
      RequestError             {"detail": text, "error_type": code}: the platform refused, lost or timed out a request
      PlainError               {"detail": text}: authentication, unknown paths, wrong methods, bodies too large
      InputError               {"detail": [{loc, msg, type, url, ctx, input}]}: the model rejects the input

Everything else that is raised maps through `to_wire`: the store's refusals to 429 and 503, the unforeseen to a
500 that says nothing about our insides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.files.objects import ObjectsAwayError
from server.files.uploads import StorageRefusedError, TooLargeError, UploadError
from server.http.errors import PlainError, WireError
from server.jobs.forecast import LateError
from server.jobs.limits import RateLimitedError, StorageFullError
from server.jobs.service import JobLostError, ServerStoppingError, WebhookRefusedError
from server.jobs.store.errors import (
    BudgetSpentError,
    DiskRefusedError,
    InputsFullError,
    QueueFullError,
    RepeatMismatchError,
    StoreError,
)

RETRY_AFTER_S = 10
"""When to come again where nothing tells when there is room: after the disk has refused, which is looked at once a
second, or while the line is full."""

DOCS_URL = "https://docs.fal.ai/errors/#"

Problem = dict[str, Any]
"""One entry of a model error's `detail` list."""


class RequestError(WireError):
    """The platform's refusal of one request, with a machine-readable `error_type`."""

    def __init__(
        self, status: int, error_type: str, detail: str, retryable: bool = False, retry_after_s: int | None = None
    ) -> None:
        body = {"detail": detail, "error_type": error_type}
        wait = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
        super().__init__(status, body, request_error_headers(error_type, retryable) | wait)


class InputError(WireError):
    """The input is wrong: 422 with one entry a fault."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(422, {"detail": list(problems)}, MODEL_ERROR_HEADERS)

    @property
    def problems(self) -> list[Problem]:
        problems: list[Problem] = self.body["detail"]
        return problems


MODEL_ERROR_HEADERS = {"x-fal-retryable": "false", "x-fal-billable-units": "0"}
"""On every model error that comes from the input."""


def request_error_headers(error_type: str, retryable: bool) -> dict[str, str]:
    """The headers that repeat a request error for clients that read no body."""
    headers = {"x-fal-error-type": error_type, "x-fal-retryable": "true" if retryable else "false"}
    return headers | ({"x-fal-needs-retry": "1"} if retryable else {})


_ABSENT = object()


def problem(
    loc: Sequence[str | int], msg: str, kind: str, ctx: dict[str, Any] | None = None, value: object = _ABSENT
) -> Problem:
    """One `detail` entry; `loc` is below the body, and big or missing values are left out."""
    entry: Problem = {"loc": ["body", *loc], "msg": msg, "type": kind, "url": DOCS_URL + kind}
    if ctx:
        entry["ctx"] = ctx
    if value is not _ABSENT and _is_small(value):
        entry["input"] = value
    return entry


def _is_small(value: object) -> bool:
    """Whether a rejected value may be echoed: short text, a number, or a container of few such things."""
    if isinstance(value, str):
        return len(value) <= 200
    if isinstance(value, dict):
        return len(value) <= 16 and all(_is_small(key) and _is_flat(item) for key, item in value.items())
    if isinstance(value, list):
        return len(value) <= 16 and all(_is_flat(item) for item in value)
    return True


def _is_flat(value: object) -> bool:
    return not isinstance(value, dict | list) and _is_small(value)


def to_wire(exc: Exception) -> WireError:
    """The one table from exceptions to answers."""
    if isinstance(exc, WireError):
        return exc
    if isinstance(exc, WebhookRefusedError):
        kind = "webhook_not_allowed"
        return InputError([{"loc": ["query", "fal_webhook"], "msg": str(exc), "type": kind, "url": DOCS_URL + kind}])
    if isinstance(exc, QueueFullError):
        return RequestError(429, "concurrent_requests_limit", "Too many requests are waiting", True, RETRY_AFTER_S)
    if isinstance(exc, InputsFullError):
        return RequestError(429, "concurrent_requests_limit", str(exc), True, RETRY_AFTER_S)
    if isinstance(exc, LateError):
        return RequestError(429, "concurrent_requests_limit", str(exc), True, exc.retry_after_s)
    if isinstance(exc, RepeatMismatchError):
        detail = (
            "This Idempotency-Key has been used for a request with another body: give every request a key of its own"
        )
        return RequestError(422, "idempotency_key_reused", detail)
    if isinstance(exc, RateLimitedError):
        error = RequestError(429, "rate_limit_exceeded", str(exc), retryable=True)
        error.headers["retry-after"] = str(exc.retry_after_s)
        return error
    if isinstance(exc, StorageFullError):
        return RequestError(403, "storage_limit_exceeded", str(exc))
    if isinstance(exc, BudgetSpentError):
        # fal's own words come first: programs look for them.
        return RequestError(403, "budget_exceeded", f"User is locked. Reason: Exhausted balance. {exc}")
    if isinstance(exc, DiskRefusedError):
        detail = "The server has no room to store requests now"
        return RequestError(507, "runner_scheduling_failure", detail, True, RETRY_AFTER_S)
    if isinstance(exc, StoreError):
        # Nothing was stored, or a repeat finds what was (InDoubtError): a client that asks again makes no second job.
        # And what was only asked about is there as before.
        detail = "The server cannot reach its store of requests now: try again"
        return RequestError(503, "runner_scheduling_failure", detail, True, RETRY_AFTER_S)
    if isinstance(exc, TooLargeError):
        return PlainError(413, str(exc))
    if isinstance(exc, UploadError):
        return PlainError(400, str(exc))
    if isinstance(exc, StorageRefusedError):
        return RequestError(503, "runner_scheduling_failure", str(exc), True, RETRY_AFTER_S)
    if isinstance(exc, ObjectsAwayError):
        detail = f"The server cannot read or store files now: {exc.strerror}"
        return RequestError(503, "runner_scheduling_failure", detail, True, RETRY_AFTER_S)
    if isinstance(exc, ServerStoppingError):
        return RequestError(503, "runner_disconnected", "The server is stopping", retryable=True)
    if isinstance(exc, JobLostError):
        return RequestError(500, "internal_error", "The request was lost", retryable=True)
    return RequestError(500, "internal_error", "Internal server error", retryable=True)
