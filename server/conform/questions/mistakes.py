"""Cases 105 to 110: errors and headers, judged over every answer that the other cases got."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from server.conform.cases import case, described, expect, expect_status, object_of
from server.conform.subject import UNKNOWN, Subject

KINDS = {"missing": b"{}", "string_type": b'{"prompt": 7}', "json_invalid": b'{"prompt":'}


def mistakes(subject: Subject) -> Iterator[httpx.Response]:
    """The answers to mistakes of every kind that cost nothing."""
    for url in (subject.run_url, subject.queue_url):
        yield subject.ask("POST", url, content=b"{", headers={"content-type": "application/json"})
        yield subject.post(url, [1])
        yield subject.post(f"{url}/no-such-path", subject.input)
        yield subject.ask("DELETE", url)
        yield subject.post(url, {}, headers={"x-fal-request-timeout": "abc"})
    for tail in ("", "/status", "/status/stream", "/response"):
        yield subject.ask("GET", subject.follow_up(UNKNOWN, tail))
    yield subject.ask("PUT", subject.follow_up(UNKNOWN, "/cancel"))
    yield subject.result(subject.rejected.request_id)


def is_of_a_request(subject: Subject, answer: httpx.Response) -> bool:
    """Whether it is an answer of run, submit, status or result."""
    url = str(answer.request.url)
    areas = (f"{subject.areas.run}/", f"{subject.areas.queue}/")
    return url.startswith(areas) and answer.request.method != "OPTIONS" and "/cdn/" not in url


@case(105, "every error is an object with detail, every answer has its request's id")
def details(subject: Subject) -> None:
    for answer in mistakes(subject):
        expect(answer.status_code >= 400, f"{described(answer)}, a mistake")
        expect("detail" in object_of(answer), f"{described(answer)} without a detail")
    for answer in subject.answers:
        has_id = bool(answer.headers.get("x-fal-request-id"))
        expect(has_id or not is_of_a_request(subject, answer), f"{described(answer)} without x-fal-request-id")


@case(106, "the error type is the same in body and header")
def error_types(subject: Subject) -> None:
    for answer in mistakes(subject):
        kinds = (object_of(answer).get("error_type"), answer.headers.get("x-fal-error-type"))
        expect(kinds[0] == kinds[1], f"{described(answer)}: {kinds[0]} in the body, {kinds[1]} in the header")


@case(107, "model errors have the table's status and type")
def kinds(subject: Subject) -> None:
    for kind, body in KINDS.items():
        answer = subject.ask("POST", subject.run_url, content=body, headers={"content-type": "application/json"})
        expect_status(answer, 422)
        detail = object_of(answer).get("detail")
        entries = [entry for entry in detail if isinstance(entry, dict)] if isinstance(detail, list) else []
        expect([entry.get("type") for entry in entries] == [kind], f"wanted {kind}, told {detail!r}")
        expect(entries[0].get("loc", [""])[0] == "body", f"{kind} is at {entries[0].get('loc')}")
        expect(isinstance(entries[0].get("msg"), str), f"{kind} says nothing")


@case(109, "no answer speaks of nginx")
def no_nginx(subject: Subject) -> None:
    for answer in subject.answers:
        expect(b"nginx" not in answer.content[:100_000].lower(), f"{described(answer)} speaks of nginx")
        expect("nginx" not in str(answer.headers).lower(), f"{described(answer)} speaks of nginx in a header")


@case(110, "the field at fault is named")
def fields(subject: Subject) -> None:
    answer = subject.post(subject.run_url, {"prompt": 7})
    expect_status(answer, 422)
    detail = object_of(answer).get("detail")
    ends = [entry["loc"][-1] for entry in detail] if isinstance(detail, list) else []
    expect("prompt" in ends, f"a prompt that is a number is at fault at {ends}")
