"""Cases 2 to 21: the areas, keys and tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx

from server.conform.cases import Mismatch, NotAsked, case, described, expect, expect_status, object_of
from server.conform.questions.files import initiate
from server.conform.subject import UNKNOWN, Subject

ADDRESSES = ("response_url", "status_url", "cancel_url")
NO_FALS = ("http://queue.fal.run.evil.test/", "https://evil.test/queue.fal.run", "https://x@queue.fal.run/")
EXPIRED_WITHIN_S = 10.0
NONSENSE = "eyJhbGciOiJSUzI1NiJ9.e30.x"


@case(2, "the addresses in the answer to a submit lead back to the server", "watched")
def addresses_lead_back(subject: Subject) -> None:
    told = object_of(subject.watched.submit)
    for name in ADDRESSES:
        url = str(told.get(name))
        expect(url.startswith(f"{subject.areas.queue}/"), f"{name} is {url}, outside {subject.areas.queue}")
    expect_status(subject.ask("GET", told["status_url"]), 200)
    expect_status(subject.ask("GET", told["response_url"]), 200)


def proxied(subject: Subject, target: str | None) -> httpx.Response:
    """A call to the proxy endpoint. Raises: NotAsked where there is none."""
    if subject.areas.proxy is None:
        raise NotAsked("fal itself has no proxy endpoint; sites have")
    headers = {} if target is None else {"x-fal-target-url": target}
    answer = subject.post(subject.areas.proxy, {}, headers=headers)
    if answer.status_code in (404, 405):
        raise NotAsked(f"no proxy endpoint at {subject.areas.proxy}")
    return answer


@case(10, "the proxy endpoint needs a target of fal's")
def proxy_needs_a_target(subject: Subject) -> None:
    for target in (None, "https://example.com/"):
        expect_status(proxied(subject, target), 400)


@case(11, "a target that only looks like fal's is refused")
def proxy_refuses_lookalikes(subject: Subject) -> None:
    for target in NO_FALS:
        answer = proxied(subject, target)
        expect(answer.status_code == 400, f"the target {target} was answered {answer.status_code}")


def routes(subject: Subject, request_id: str) -> Iterator[tuple[str, str, Any]]:
    """Method, address and body of every route of the protocol's section 5; none draws, for none has a prompt."""
    areas, tail = subject.areas, subject.follow_up(request_id)
    yield "POST", subject.run_url, {}
    yield "GET", subject.run_url, None
    yield "POST", f"{subject.run_url}/stream", {}
    yield "POST", subject.queue_url, {}
    for end in ("", "/response", "/status", "/status/stream"):
        yield "GET", tail + end, None
    yield "PUT", f"{tail}/cancel", None
    app = {"allowed_apps": [subject.app.rpartition("/")[2]], "token_expiration": 60}
    for end in ("/tokens", "/tokens/realtime"):
        yield "POST", areas.rest + end, app
    yield "POST", f"{areas.rest}/storage/auth/token?storage_type=fal-cdn-v3", {}
    for end in ("/storage/upload/initiate", "/storage/upload/initiate-multipart"):
        yield "POST", f"{areas.rest}{end}?storage_type=fal-cdn-v3", {"content_type": "text/plain", "file_name": "a.txt"}
    yield "GET", f"{areas.rest}/.well-known/jwks.json", None
    for end in ("/files/upload", "/files/upload/multipart"):
        yield "POST", areas.cdn + end, {}
    yield "OPTIONS", subject.queue_url, None
    if areas.proxy is not None:
        yield "POST", areas.proxy, {}


def slashed(url: str) -> str:
    path, mark, query = url.partition("?")
    return f"{path}/{mark}{query}"


@case(13, "every route answers alike with and without a trailing slash", "watched")
def slashes_change_nothing(subject: Subject) -> None:
    for method, url, body in routes(subject, subject.watched.request_id):
        sent = {} if body is None else {"json": body}
        plain, other = (subject.ask(method, address, **sent) for address in (url, slashed(url)))
        expect(
            not plain.is_redirect and not other.is_redirect, f"{described(plain)} and {other.status_code}: redirects"
        )
        expect(plain.status_code == other.status_code, f"{described(plain)}, and with a slash {other.status_code}")
        kinds = [answer.headers.get("content-type") for answer in (plain, other)]
        expect(kinds[0] == kinds[1], f"{described(plain)} as {kinds[0]}, and with a slash as {kinds[1]}")


def needs_protection(subject: Subject) -> None:
    if not subject.is_protected:
        raise NotAsked("the server asks for no key")


@case(16, "a wrong key is 401 with a sentence")
def wrong_keys(subject: Subject) -> None:
    needs_protection(subject)
    headers = {"authorization": "Key wrong:key"}
    for url in (subject.run_url, subject.queue_url):
        answer = subject.post(url, {}, with_key=False, headers=headers)
        expect_status(answer, 401)
        expect(isinstance(object_of(answer).get("detail"), str), f"{described(answer)} without a detail in words")


@case(17, "a missing key is 401 on a protected server, and served on an open one")
def missing_keys(subject: Subject) -> None:
    token = {"allowed_apps": [subject.app.rpartition("/")[2]], "token_expiration": 60}
    upload = {"content_type": "text/plain", "file_name": "a.txt"}
    calls = [
        (subject.run_url, {}),
        (subject.queue_url, {}),
        (f"{subject.areas.rest}/tokens/", token),
        (f"{subject.areas.rest}/storage/upload/initiate?storage_type=fal-cdn-v3", upload),
    ]
    for url, body in calls:
        answer = subject.post(url, body, with_key=False)
        is_refused = answer.status_code == 401
        expect(is_refused == subject.is_protected, described(answer))


@case(18, "the word Key counts in any case, and a Bearer that means nothing is refused in peace")
def schemes(subject: Subject) -> None:
    needs_protection(subject)
    if subject.key is None:
        raise NotAsked("give the server's key with --key")
    for word in ("Key", "key", "KEY"):
        headers = {"authorization": f"{word} {subject.key}"}
        answer = subject.post(subject.run_url, {}, with_key=False, headers=headers)
        expect(answer.status_code not in (401, 403), f"`{word} ...` was answered {answer.status_code}")
    refused = subject.post(subject.run_url, {}, with_key=False, headers={"authorization": f"Bearer {NONSENSE}"})
    expect_status(refused, 401, 403)


@case(19, "preflights need no key on any route")
def preflights(subject: Subject) -> None:
    asked = {"origin": "https://a.test", "access-control-request-method": "POST"}
    addresses = [url for _, url, _ in routes(subject, UNKNOWN)] + [initiate(subject)["upload_url"]]
    for url in addresses:
        answer = subject.ask("OPTIONS", url, with_key=False, headers=asked)
        expect(answer.is_success, described(answer))
        allowed = answer.headers.get("access-control-allow-origin")
        expect(allowed in ("*", "https://a.test"), f"{described(answer)} and allows the origin {allowed}")


@case(20, "an upload address is its own permission")
def upload_addresses(subject: Subject) -> None:
    urls = initiate(subject)
    expect(subject.ask("PUT", urls["upload_url"], with_key=False, content=b"text").is_success, "the PUT was refused")
    parts = httpx.URL(urls["upload_url"])
    for path in (f"{parts.path}x", parts.path[:-1]):
        expect_status(subject.ask("PUT", str(parts.copy_with(path=path)), with_key=False, content=b"text"), 403, 404)


def token(subject: Subject, seconds: int) -> str:
    """A token for the endpoint, as the clients fetch it."""
    body = {"allowed_apps": [subject.app.rpartition("/")[2]], "token_expiration": seconds}
    answer = subject.post(f"{subject.areas.rest}/tokens/", body)
    expect(answer.is_success, described(answer))
    told = answer.json()
    if not isinstance(told, str):
        raise Mismatch("a token is answered as something else than one JSON string")
    return told


@case(21, "a token in the query stands for the key until it expires")
def tokens(subject: Subject) -> None:
    needs_protection(subject)
    address, short = f"{subject.run_url}/stream?fal_jwt_token=", token(subject, 1)
    answer = subject.post(address + token(subject, 60), {}, with_key=False)
    if answer.status_code == 404:
        raise NotAsked("the endpoint has no /stream")
    expect(answer.status_code not in (401, 403), described(answer))
    deadline = time.monotonic() + EXPIRED_WITHIN_S
    while subject.post(address + short, {}, with_key=False).status_code not in (401, 403):
        expect(time.monotonic() < deadline, f"a token of 1 s was taken after {EXPIRED_WITHIN_S:.0f} s")
        time.sleep(0.25)
