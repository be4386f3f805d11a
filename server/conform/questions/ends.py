"""Cases 51 to 68: the status stream, the result, and cancels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from server.conform.cases import NotAsked, case, described, expect, expect_status, object_of
from server.conform.questions.queue import STATES
from server.conform.subject import UNKNOWN, Cancelled, Subject

AT_ONCE_S = 1.0
"""A request that ends sooner after its cancel may have been at its last step."""


@case(51, "the status stream tells the states in order and each log line once", "followed")
def states(subject: Subject) -> None:
    told = [str(event.get("status")) for event in subject.followed.events]
    expect(told and told[-1] == "COMPLETED", f"the states were {told}")
    expect(set(told) <= set(STATES) and told == sorted(told, key=STATES.index), f"the states were {told}")
    lines = [(line.get("timestamp"), line.get("message")) for line in subject.followed.events[-1].get("logs") or []]
    expect(len(lines) == len(set(lines)), "the last event has a log line twice")


@case(52, "the status stream is an event stream that ends by itself", "followed")
def stream_form(subject: Subject) -> None:
    kind = str(subject.followed.answer.headers.get("content-type"))
    expect(kind.startswith("text/event-stream"), f"the content type is {kind}")
    text = subject.followed.text.replace("\r\n", "\n")
    expect(text.endswith("\n\n"), "the last event does not end with a blank line")
    expect(subject.followed.events[-1].get("status") == "COMPLETED", "it ended before the request")


@case(53, "the status stream of an ended request is one event", "watched")
def stream_of_ended(subject: Subject) -> None:
    streamed = subject.stream("GET", subject.follow_up(subject.watched.request_id, "/status/stream"))
    told = [event.get("status") for event in streamed.events]
    expect(told == ["COMPLETED"], f"the states were {told}")


@case(54, "the result is there when the stream says so", "followed")
def result_after_stream(subject: Subject) -> None:
    assert subject.followed.result is not None
    expect_status(subject.followed.result, 200)


@case(56, "a result asked for too early is 400 with a detail", "watched")
def early_results(subject: Subject) -> None:
    early = subject.watched.early
    if early is None:
        raise NotAsked("it had ended before its result was asked for")
    expect_status(early, 400)
    expect("detail" in object_of(early), "the body has no detail")


@case(57, "a result is what a run answers, with the request's id", "watched", "ran")
def results(subject: Subject) -> None:
    answer = subject.result(subject.watched.request_id)
    expect_status(answer, 200)
    names = [sorted(object_of(one)) for one in (answer, subject.ran)]
    expect(names[0] == names[1], f"a result has {names[0]}, a run {names[1]}")
    told = answer.headers.get("x-fal-request-id")
    expect(told == subject.watched.request_id, f"x-fal-request-id is {told}")


@case(58, "a rejected input is 422 at every reading")
def rejected(subject: Subject) -> None:
    first, again = (subject.result(subject.rejected.request_id) for _ in range(2))
    for answer in (first, again):
        expect_status(answer, 422)
        kind = str(answer.headers.get("content-type"))
        expect(kind.startswith("application/json"), f"the content type is {kind}")
    expect(first.json() == again.json(), "the two readings differ")


@case(60, "/response and a trailing slash are the same address", "watched")
def same_address(subject: Subject) -> None:
    root = subject.follow_up(subject.watched.request_id)
    full = f"{subject.queue_url}/requests/{subject.watched.request_id}/response/"
    answers = [subject.ask("GET", url) for url in (root, f"{root}/", f"{root}/response", full)]
    for answer in answers:
        expect_status(answer, 200)
        expect(answer.json() == answers[0].json(), f"{described(answer)} with another body")


@case(62, "reading a result deletes nothing", "watched")
def read_twice(subject: Subject) -> None:
    first, again = (subject.result(subject.watched.request_id) for _ in range(2))
    expect_status(again, 200)
    expect(first.json() == again.json(), "the two readings differ")


def is_cancelled(subject: Subject, cancelled: Cancelled, state: str) -> None:
    if cancelled.before != state:
        raise NotAsked(f"it was {cancelled.before} when the cancel came")
    expect_status(cancelled.answer, 202, 200)
    status = object_of(subject.status(cancelled.request_id))
    expect(status.get("status") == "COMPLETED", f"its status is {status.get('status')}")
    result = subject.result(cancelled.request_id)
    if result.status_code == 200 and cancelled.took_s < AT_ONCE_S:
        raise NotAsked("it ended in the moment of the cancel; give an --input that takes longer")
    expect_status(result, 499)
    kind = object_of(result).get("error_type")
    expect(kind == "client_cancelled", f"its error_type is {kind}")


@case(63, "a waiting request that is cancelled never runs", "cancelled")
def cancel_waiting(subject: Subject) -> None:
    is_cancelled(subject, subject.cancelled, "IN_QUEUE")


@case(64, "a running request that is cancelled stops", "cancelled")
def cancel_running(subject: Subject) -> None:
    is_cancelled(subject, subject.cancelled, "IN_PROGRESS")


@case(65, "a cancel that comes too late or means nothing says so", "watched")
def cancel_too_late(subject: Subject) -> None:
    for request_id, code, word in (
        (subject.watched.request_id, 400, "ALREADY_COMPLETED"),
        (UNKNOWN, 404, "NOT_FOUND"),
    ):
        answer = subject.ask("PUT", subject.follow_up(request_id, "/cancel"))
        expect_status(answer, code)
        told = object_of(answer).get("status")
        expect(told == word, f"{described(answer)} with the status {told}")
    expect_status(subject.result(subject.watched.request_id), 200)


@case(66, "a cancel has no body, whatever its content type", "watched")
def cancel_bodies(subject: Subject) -> None:
    url = subject.follow_up(subject.watched.request_id, "/cancel")
    for headers in ({"content-type": "application/json"}, {}):
        expect_status(subject.ask("PUT", url, content=b"", headers=headers), 400)


@case(68, "two cancels at once leave one end", pictures=1)
def two_cancels(subject: Subject) -> None:
    request_id, _ = subject.submit(subject.input)

    def cancel(_: int) -> httpx.Response:
        return subject.ask("PUT", subject.follow_up(request_id, "/cancel"))

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(cancel, range(2)))
    for answer in answers:
        expect_status(answer, 202, 200, 400)
    subject.until_end(request_id)
    first, again = (subject.result(request_id) for _ in range(2))
    expect_status(first, 200, 499)
    expect((first.status_code, first.json()) == (again.status_code, again.json()), "two readings differ")
