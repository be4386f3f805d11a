"""Cases 76 to 85: realtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server.conform.cases import NotAsked, case, expect
from server.conform.questions.addressing import token
from server.conform.subject import PATIENCE_S, Subject

BURST = 10


@contextmanager
def realtime(subject: Subject, query: str = "", with_key: bool = True) -> Iterator[ClientConnection]:
    """An open socket. Raises: NotAsked where the endpoint has none."""
    url = f"{subject.areas.realtime}/{subject.endpoint}/realtime{query}"
    headers = subject.credentials if with_key else {}
    trust = subject.trust if url.startswith("wss:") else None
    try:
        socket = connect(url, additional_headers=headers, ssl=trust, proxy=None, max_size=None)
    except InvalidStatus as exc:
        if exc.response.status_code == 404:
            raise NotAsked("the endpoint has no realtime socket") from exc
        raise
    with socket:
        yield socket


def message(socket: ClientConnection) -> tuple[Any, bool]:
    """The next message that is not an aside, and whether it was binary."""
    while True:
        raw = socket.recv(timeout=PATIENCE_S)
        told = msgpack.unpackb(raw) if isinstance(raw, bytes) else json.loads(raw)
        if not (isinstance(told, dict) and told.get("type") == "x-fal-message"):
            return told, isinstance(raw, bytes)


def is_picture(told: Any) -> bool:
    return isinstance(told, dict) and bool(told.get("images"))


@case(76, "a msgpack input is answered in msgpack", pictures=1)
def binary(subject: Subject) -> None:
    with realtime(subject) as socket:
        socket.send(msgpack.packb(subject.input))
        told, is_binary = message(socket)
    expect(is_picture(told), f"the answer was {str(told)[:200]}")
    expect(is_binary, "the answer was text")


@case(77, "a token opens a socket")
def by_token(subject: Subject) -> None:
    with realtime(subject, f"?fal_jwt_token={token(subject, 60)}", with_key=False) as socket:
        socket.send(json.dumps({}))
        told, _ = message(socket)
    expect(told.get("error") != "Unauthorized", "it was refused")


@case(79, "a wrong input is x-fal-error, and the next one works", pictures=1)
def wrong_inputs(subject: Subject) -> None:
    with realtime(subject) as socket:
        socket.send(json.dumps({}))
        told, _ = message(socket)
        expect(told.get("type") == "x-fal-error", f"a wrong input was answered {str(told)[:200]}")
        socket.send(json.dumps(subject.input))
        expect(is_picture(message(socket)[0]), "a right input after a wrong one was not answered")


@case(81, "of a burst the first and the last are answered, in order", pictures=BURST)
def bursts(subject: Subject) -> None:
    seeds: list[Any] = []
    with realtime(subject, "?max_buffering=1") as socket:
        for seed in range(1, BURST + 1):
            socket.send(json.dumps(subject.input | {"seed": seed}))
        while BURST not in seeds:
            told, _ = message(socket)
            expect(is_picture(told), f"the answer was {str(told)[:200]}")
            seeds.append(told.get("seed"))
    expect(seeds[0] == 1 and seeds == sorted(seeds), f"the seeds came as {seeds}")


@case(82, "a bad token is refused")
def bad_tokens(subject: Subject) -> None:
    if not subject.is_protected:
        raise NotAsked("the server asks for no key")
    try:
        with realtime(subject, "?fal_jwt_token=nonsense", with_key=False) as socket:
            told, _ = message(socket)
    except (InvalidStatus, ConnectionClosed):
        return
    expect(told.get("error") == "Unauthorized", f"the first message was {str(told)[:200]}")


@case(83, "a JSON input is answered in text", pictures=1)
def text(subject: Subject) -> None:
    with realtime(subject) as socket:
        socket.send(json.dumps(subject.input))
        told, is_binary = message(socket)
    expect(is_picture(told) and not is_binary, "the answer was binary" if is_binary else f"it was {str(told)[:200]}")


@case(85, "a close is answered as a normal one")
def closes(subject: Subject) -> None:
    with realtime(subject) as socket:
        socket.close()
    expect(socket.close_code == 1000, f"the code is {socket.close_code}")
