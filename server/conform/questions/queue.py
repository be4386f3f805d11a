"""Cases 30 to 50: submit and status."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from server.conform.cases import NotAsked, case, described, expect, expect_status, object_of
from server.conform.questions.addressing import ADDRESSES
from server.conform.subject import UNKNOWN, Subject

FIELDS = {"status", "request_id", "queue_position", "gateway_request_id", *ADDRESSES}
STATES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
POLLERS = 50


@case(30, "the answer to a submit has its seven fields", "watched")
def submit(subject: Subject) -> None:
    for watched in (subject.watched, subject.rejected):
        told = object_of(watched.submit)
        expect(set(told) >= FIELDS, f"missing: {', '.join(sorted(FIELDS - set(told)))}")
        expect(told["status"] == "IN_QUEUE", f"status is {told['status']}")
        expect(type(told["queue_position"]) is int, f"queue_position is {told['queue_position']!r}")
    expect(subject.watched.request_id != subject.rejected.request_id, "two requests have one id")


@case(31, "the addresses leave the endpoint's sub-path out", "watched")
def short_addresses(subject: Subject) -> None:
    if subject.app == subject.endpoint:
        raise NotAsked("the endpoint's id has no sub-path")
    told = object_of(subject.watched.submit)
    for name in ADDRESSES:
        expect(f"/{subject.app}/requests/" in told[name], f"{name} is {told[name]}")


@case(34, "an unknown priority is ignored")
def priorities(subject: Subject) -> None:
    subject.submit({}, headers={"x-fal-queue-priority": "urgent"})


@case(36, "a start timeout that is no number is a bad request")
def start_timeouts(subject: Subject) -> None:
    answer = subject.post(subject.queue_url, {}, headers={"x-fal-request-timeout": "abc"})
    expect_status(answer, 400)
    expect(object_of(answer).get("error_type") == "bad_request", "its error_type is not bad_request")


@case(40, "an invalid input fails at the result, at its field")
def invalid_inputs(subject: Subject) -> None:
    answer = subject.result(subject.rejected.request_id)
    expect_status(answer, 422)
    detail = object_of(answer).get("detail")
    expect(isinstance(detail, list) and detail, f"detail is {detail!r}, wanted a list")
    loc = [entry.get("loc") for entry in detail or []]
    expect(["body", "prompt"] in loc, f"an input without prompt is at fault at {loc}")


@case(41, "a status is 202 until the end, then 200", "watched")
def codes(subject: Subject) -> None:
    for answer in subject.watched.statuses:
        has_ended = object_of(answer)["status"] == "COMPLETED"
        expect_status(answer, 200 if has_ended else 202)


@case(42, "the queue position is an int and never grows", "watched")
def positions(subject: Subject) -> None:
    waiting = [body for body in subject.watched.bodies if body["status"] == "IN_QUEUE"]
    if not waiting:
        raise NotAsked("it had left the queue before the first status call")
    told = [body.get("queue_position") for body in waiting]
    expect(all(type(position) is int for position in told), f"positions are {told}")
    expect(told == sorted(told, reverse=True), f"positions are {told}")


@case(43, "`logs` is a key, and a list where logs are asked for", "watched")
def logs(subject: Subject) -> None:
    for body in subject.watched.bodies:
        expect("logs" in body or body["status"] == "IN_QUEUE", f"a status of {body['status']} has no logs")
    for query in ("", "?logs=0", "?logs=false", "?logs=1", "?logs=true"):
        body = object_of(subject.status(subject.watched.request_id, query))
        expect("logs" in body, f"status{query} has no logs")
        is_asked_for = query in ("?logs=1", "?logs=true")
        expect(isinstance(body["logs"], list) if is_asked_for else not body["logs"], f"logs{query}: {body['logs']!r}")


@case(44, "the end has metrics with the inference time", "watched")
def metrics(subject: Subject) -> None:
    told = subject.watched.bodies[-1].get("metrics")
    expect(isinstance(told, dict), f"metrics is {told!r}")
    seconds = (told or {}).get("inference_time")
    expect(isinstance(seconds, int | float), f"inference_time is {seconds!r}")


@case(45, "every status names its request", "watched")
def names(subject: Subject) -> None:
    for body in subject.watched.bodies:
        expect(body.get("request_id") == subject.watched.request_id, f"request_id is {body.get('request_id')!r}")
        expect("response_url" in body, "there is no response_url")


@case(46, "a failure is COMPLETED with error and error_type")
def failures(subject: Subject) -> None:
    bodies = subject.rejected.bodies
    words = {str(body.get("status")) for body in bodies}
    expect(words <= set(STATES), f"states are {sorted(words)}")
    for name in ("error", "error_type"):
        expect(isinstance(bodies[-1].get(name), str), f"{name} is {bodies[-1].get(name)!r}")


@case(47, "an unknown request is 404")
def unknown(subject: Subject) -> None:
    answer = subject.status(UNKNOWN)
    expect_status(answer, 404)
    expect("detail" in object_of(answer), "the body has no detail")


@case(48, "fifty callers that poll do not stop the queue", "watched", pictures=1)
def pollers(subject: Subject) -> None:
    has_ended = threading.Event()

    def poll() -> None:
        while not has_ended.wait(0.1):
            subject.http.get(subject.follow_up(subject.watched.request_id, "/status"), headers=subject.credentials)

    with ThreadPoolExecutor(POLLERS) as threads:
        polling = [threads.submit(poll) for _ in range(POLLERS)]
        try:
            request_id, _ = subject.submit(subject.input)
            subject.until_end(request_id)
        finally:
            has_ended.set()
    for one in polling:
        one.result()


@case(49, "whatever else stands in a status call's query, it is answered", "watched")
def queries(subject: Subject) -> None:
    started = time.monotonic()
    answer = subject.status(subject.watched.request_id, "?state=7&logs=true&logs=0")
    expect_status(answer, 200)
    expect(time.monotonic() - started < 30, "it was held open")


@case(50, "the endpoint's full id answers like the app's root", "watched")
def full_ids(subject: Subject) -> None:
    tail = f"/requests/{subject.watched.request_id}/status?logs=1"
    short, full = (subject.ask("GET", f"{subject.areas.queue}/{app}{tail}") for app in (subject.app, subject.endpoint))
    expect(short.status_code == full.status_code, f"{described(short)}, {described(full)}")
    expect(object_of(short) == object_of(full), "the two bodies differ")
