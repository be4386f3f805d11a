"""Cases 22 to 29 and 69 to 75: run, and the endpoint's own stream."""

from __future__ import annotations

from server.conform.cases import NotAsked, case, described, expect, expect_status, object_of
from server.conform.questions.addressing import token
from server.conform.subject import Subject

NO_JSON = (b"{", b'{"prompt": "a fox"', b"nonsense", b"\xff\xfe{}")


@case(22, "a run answers pictures and its request's id", "ran")
def run(subject: Subject) -> None:
    expect(object_of(subject.ran).get("images"), "the output has no images")
    expect(subject.ran.headers.get("x-fal-request-id"), "the answer has no x-fal-request-id")


@case(23, "an empty body with a JSON content type is an empty input")
def empty_body(subject: Subject) -> None:
    answer = subject.ask("POST", subject.run_url, content=b"", headers={"content-type": "application/json"})
    expect_status(answer, 422, 200)


@case(24, "a run by GET is answered, with 405 or by the model")
def run_by_get(subject: Subject) -> None:
    expect_status(subject.ask("GET", subject.run_url), 405, 422, 200)


@case(28, "an unknown endpoint is 404 with a sentence")
def unknown_endpoint(subject: Subject) -> None:
    answer = subject.post(f"{subject.areas.run}/{subject.app.partition('/')[0]}/no-such-app", subject.input)
    expect_status(answer, 404)
    expect(isinstance(object_of(answer).get("detail"), str), "its detail is no sentence")


@case(29, "wrong methods are 405, malformed JSON is 422 or 400, all as JSON")
def mistakes_of_form(subject: Subject) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        answer = subject.ask(method, subject.run_url)
        expect_status(answer, 405)
        expect(isinstance(object_of(answer).get("detail"), str), f"{described(answer)} without a sentence")
    for body in NO_JSON:
        answer = subject.ask("POST", subject.run_url, content=body, headers={"content-type": "application/json"})
        expect_status(answer, 422, 400)
        expect("detail" in object_of(answer), f"{described(answer)} without a detail")


@case(69, "a stream ends with what a run answers", "streamed", "ran")
def stream(subject: Subject) -> None:
    events = subject.streamed.events
    expect(events, "the stream has no event")
    expect(set(object_of(subject.ran)) <= set(events[-1]), f"the last event has only {sorted(events[-1])}")


@case(71, "who accepts JSON and events gets events", "streamed")
def stream_kind(subject: Subject) -> None:
    kind = str(subject.streamed.answer.headers.get("content-type"))
    expect(kind.startswith("text/event-stream"), f"the content type is {kind}")


@case(72, "a path without a stream is 404 as JSON")
def no_stream(subject: Subject) -> None:
    answer = subject.post(f"{subject.run_url}/no-such-route/stream", subject.input)
    expect_status(answer, 404)
    expect("detail" in object_of(answer), f"{described(answer)} without a detail")


@case(75, "a browser may stream with a token alone")
def stream_by_token(subject: Subject) -> None:
    url = f"{subject.run_url}/stream"
    asked = {
        "origin": "https://page.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    allowed = subject.ask("OPTIONS", url, with_key=False, headers=asked)
    expect(allowed.is_success, described(allowed))
    headers = str(allowed.headers.get("access-control-allow-headers", "")).lower()
    expect("content-type" in headers or headers == "*", f"the preflight allows the headers {headers or 'none'}")
    answer = subject.post(f"{url}?fal_jwt_token={token(subject, 60)}", {}, with_key=False)
    if answer.status_code == 404:
        raise NotAsked("the endpoint has no /stream")
    expect_status(answer, 422, 200)
    if subject.is_protected:
        expect_status(subject.post(f"{url}?fal_jwt_token=nonsense", {}, with_key=False), 401, 403)
