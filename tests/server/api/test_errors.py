"""Exceptions and the answers they become."""

from __future__ import annotations

import pytest

from server.api.errors import InputError, RequestError, problem, to_wire
from server.files.uploads import StorageRefusedError
from server.http.errors import PlainError
from server.jobs.forecast import LateError
from server.jobs.store.errors import DiskRefusedError, InputsFullError, QueueFullError, StoreError


def test_a_request_error_says_its_type_in_body_and_header() -> None:
    wire = RequestError(400, "bad_request", "no")
    assert wire.body == {"detail": "no", "error_type": "bad_request"}
    assert wire.headers["x-fal-error-type"] == "bad_request"
    assert wire.headers["x-fal-retryable"] == "false"
    assert "x-fal-needs-retry" not in wire.headers


@pytest.mark.parametrize(
    ("exc", "status", "kind"),
    [
        (QueueFullError("9 wait"), 429, "concurrent_requests_limit"),
        (InputsFullError(), 429, "concurrent_requests_limit"),
        (LateError(3.0, 7.0), 429, "concurrent_requests_limit"),
        (DiskRefusedError("/var/lib/fluxserve takes no writes"), 507, "runner_scheduling_failure"),
        (StoreError("/var/lib/fluxserve/jobs.db: disk full"), 503, "runner_scheduling_failure"),
        (ZeroDivisionError("/secret/path"), 500, "internal_error"),
    ],
)
def test_foreign_exceptions_say_nothing_of_our_insides(exc: Exception, status: int, kind: str) -> None:
    wire = to_wire(exc)
    assert (wire.status, wire.body["error_type"]) == (status, kind)
    assert "/" not in wire.body["detail"]


@pytest.mark.parametrize(
    "exc",
    [DiskRefusedError(""), StoreError(""), StorageRefusedError("no room"), QueueFullError("9 wait"), InputsFullError()],
)
def test_who_finds_no_room_is_told_when_to_come_again(exc: Exception) -> None:
    wire = to_wire(exc)
    assert (wire.headers["retry-after"], wire.headers["x-fal-retryable"]) == ("10", "true")


def test_a_store_that_is_away_is_told_to_readers_and_writers_alike() -> None:
    detail = to_wire(StoreError("the database db.example:5432/fluxserve went away")).body["detail"]
    assert detail == "The server cannot reach its store of requests now: try again"


def test_wire_errors_pass_unchanged() -> None:
    exc = PlainError(413, "too large")
    assert to_wire(exc) is exc


def test_a_problem_leaves_out_what_is_too_big_to_repeat() -> None:
    assert problem(["prompt"], "no", "x", value="short")["input"] == "short"
    for big in ("x" * 300, list(range(100)), {"a": {"b": 1}}, [[1]]):
        assert "input" not in problem(["prompt"], "no", "x", value=big)
    assert problem(["steps"], "no", "less_than_equal", {"le": 50}, 400) == {
        "loc": ["body", "steps"],
        "msg": "no",
        "type": "less_than_equal",
        "url": "https://docs.fal.ai/errors/#less_than_equal",
        "ctx": {"le": 50},
        "input": 400,
    }


def test_an_input_error_lists_every_fault() -> None:
    wire = InputError([problem(["a"], "no", "x"), problem(["b"], "no", "y")])
    assert wire.status == 422
    assert [entry["loc"] for entry in wire.body["detail"]] == [["body", "a"], ["body", "b"]]
    assert wire.headers["x-fal-billable-units"] == "0"
