"""The server that is asked: calls to it, and what several cases read of the same few pictures."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from server.conform.areas import Areas
from server.conform.cases import Mismatch, NotAsked, expect, expect_status, object_of

T = TypeVar("T")
UNKNOWN = "00000000-0000-4000-8000-000000000000"
"""The id of no request."""
BOTH_KINDS = "application/json, text/event-stream"
PAUSE_S = 0.05
PATIENCE_S = 300.0
"""How long a request may take."""
LONGER = 12
"""Steps of a request that is to be cancelled: as many as every endpoint of FLUX takes."""
DEFAULT_INPUT: Mapping[str, Any] = {
    "prompt": "a red circle on a white ground",
    "image_size": "square",
    "num_inference_steps": 2,
}


def once(look: Callable[[Subject], T]) -> property:
    """An observation that is made at its first reading and kept, its failure too: a picture costs money."""

    def read(self: Subject) -> T:
        name = look.__name__
        if name not in self.kept:
            try:
                self.kept[name] = look(self)
            except (Mismatch, NotAsked, httpx.HTTPError) as exc:
                self.kept[name] = exc
        found = self.kept[name]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    return property(read)


@dataclass
class Watched:
    """A request followed to its end. Args: early: the result's answer while the request had certainly not ended."""

    request_id: str
    submit: httpx.Response
    statuses: list[httpx.Response] = field(default_factory=list)
    early: httpx.Response | None = None

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Every status object that was told, the last one of the end."""
        return [object_of(status) for status in self.statuses]


@dataclass(frozen=True)
class Streamed:
    """An event stream from its first to its last byte."""

    answer: httpx.Response
    text: str
    result: httpx.Response | None = None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The data of its events."""
        lines = self.text.replace("\r\n", "\n").split("\n")
        return [json.loads(line[5:]) for line in lines if line.startswith("data:")]


@dataclass
class Cancelled:
    """A request that was cancelled right after its submit.

    Args: before: its status a moment earlier. took_s: from the cancel to the end.
    """

    request_id: str
    before: str
    answer: httpx.Response
    took_s: float


class Subject:
    """One endpoint of one server; a context, which ends its connections.

    Args:
        endpoint: takes a `prompt`, which it needs, and answers pictures.
        input: what is drawn; small, for it is drawn often.
        picture_endpoint: takes an `image_url`, too.
        authority: a certificate file to trust beside the public ones.

    Raises: ssl.SSLError or OSError if that is none.
    """

    def __init__(
        self,
        areas: Areas,
        endpoint: str,
        key: str | None = None,
        input: Mapping[str, Any] = DEFAULT_INPUT,
        picture_endpoint: str | None = None,
        authority: Path | None = None,
    ) -> None:
        self.areas = areas
        self.endpoint = endpoint
        self.key = key
        self.input = dict(input)
        self.picture_endpoint = picture_endpoint
        self.kept: dict[str, Any] = {}
        self.answers: list[httpx.Response] = []
        self.trust = ssl.create_default_context()
        if authority is not None:
            self.trust.load_verify_locations(authority)
        # Not by a proxy of the environment: it may be another server, for fal's clients.
        self.http = httpx.Client(timeout=PATIENCE_S, verify=self.trust, trust_env=False)

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def app(self) -> str:
        """What of the endpoint's id stands before `requests/`."""
        segments = self.endpoint.split("/")
        return "/".join(segments[: 3 if segments[0] in ("workflows", "comfy") else 2])

    @property
    def run_url(self) -> str:
        return f"{self.areas.run}/{self.endpoint}"

    @property
    def queue_url(self) -> str:
        return f"{self.areas.queue}/{self.endpoint}"

    def follow_up(self, request_id: str, tail: str = "") -> str:
        """The address of a request's result, or with `tail` of what hangs below it."""
        return f"{self.areas.queue}/{self.app}/requests/{request_id}{tail}"

    @property
    def credentials(self) -> dict[str, str]:
        """The header that fal's clients send."""
        return {"authorization": f"Key {self.key}"} if self.key else {}

    def ask(self, method: str, url: str, with_key: bool = True, **about: Any) -> httpx.Response:
        """One call, remembered for the cases that judge all answers."""
        headers = (self.credentials if with_key else {}) | dict(about.pop("headers", {}))
        answer = self.http.request(method, url, headers=headers, **about)
        self.answers.append(answer)
        return answer

    def post(self, url: str, body: Any, **about: Any) -> httpx.Response:
        """`ask` with a JSON body."""
        return self.ask("POST", url, json=body, **about)

    def status(self, request_id: str, query: str = "?logs=1") -> httpx.Response:
        """The status call of a request."""
        return self.ask("GET", self.follow_up(request_id, f"/status{query}"))

    def result(self, request_id: str) -> httpx.Response:
        """The result call of a request."""
        return self.ask("GET", self.follow_up(request_id))

    def submit(self, body: Mapping[str, Any], **about: Any) -> tuple[str, httpx.Response]:
        """Queue a request; its id and the answer. Raises: Mismatch."""
        answer = self.post(self.queue_url, dict(body), **about)
        expect_status(answer, 200)
        request_id = object_of(answer).get("request_id")
        expect(isinstance(request_id, str) and request_id, "the answer to a submit has no request_id")
        return str(request_id), answer

    def until_end(self, request_id: str) -> list[httpx.Response]:
        """Every answer of the status calls until one says COMPLETED. Raises: Mismatch."""
        told = [self.status(request_id)]
        deadline = time.monotonic() + PATIENCE_S
        while object_of(told[-1]).get("status") != "COMPLETED":
            expect_status(told[-1], 200, 202)
            expect(time.monotonic() < deadline, f"a request had not ended after {PATIENCE_S:.0f} s")
            time.sleep(PAUSE_S)
            told.append(self.status(request_id))
        return told

    def stream(self, method: str, url: str, **about: Any) -> Streamed:
        """An event stream until the server closes it."""
        with self.http.stream(method, url, headers=self.credentials | {"accept": BOTH_KINDS}, **about) as answer:
            answer.read()
        self.answers.append(answer)
        return Streamed(answer, answer.text)

    @once
    def is_protected(self) -> bool:
        """Whether the server asks for a key."""
        return self.post(self.run_url, {}, with_key=False).status_code == 401

    @once
    def watched(self) -> Watched:
        """A request that draws, with every status that was told. Draws."""
        request_id, submit = self.submit(self.input)
        early = self.result(request_id)
        statuses = self.until_end(request_id)
        is_early = object_of(statuses[0]).get("status") != "COMPLETED"
        return Watched(request_id, submit, statuses, early if is_early else None)

    @once
    def rejected(self) -> Watched:
        """A request without the prompt that its endpoint needs, followed to its end."""
        request_id, submit = self.submit({})
        return Watched(request_id, submit, self.until_end(request_id))

    @once
    def ran(self) -> httpx.Response:
        """The answer of a synchronous run. Draws."""
        answer = self.post(self.run_url, self.input)
        expect_status(answer, 200)
        return answer

    @once
    def streamed(self) -> Streamed:
        """The endpoint's own stream. Draws."""
        streamed = self.stream("POST", f"{self.run_url}/stream", json=self.input)
        if streamed.answer.status_code == 404:
            raise NotAsked("the endpoint has no /stream")
        expect_status(streamed.answer, 200)
        return streamed

    @once
    def followed(self) -> Streamed:
        """The status stream of a request from its submit on, and the result asked for as it ended. Draws."""
        request_id, _ = self.submit(self.input)
        streamed = self.stream("GET", self.follow_up(request_id, "/status/stream?logs=1"))
        expect_status(streamed.answer, 200)
        return Streamed(streamed.answer, streamed.text, self.result(request_id))

    @once
    def cancelled(self) -> Cancelled:
        """A request of more steps that is cancelled as soon as it was submitted. Draws, if that came too late."""
        longer = {"num_inference_steps": LONGER} if "num_inference_steps" in self.input else {}
        request_id, _ = self.submit(self.input | longer)
        before = str(object_of(self.status(request_id)).get("status"))
        answer, started = self.ask("PUT", self.follow_up(request_id, "/cancel")), time.monotonic()
        self.until_end(request_id)
        if answer.status_code == 400:
            raise NotAsked("it had ended before the cancel came; give an --input that takes longer")
        return Cancelled(request_id, before, answer, time.monotonic() - started)
