"""How the bytes of an answer leave, on the transport that uvicorn is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from server.http.joined_writes import LARGEST, JoinedWrites


class Wire:
    """Takes down what a transport is asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []

    def write(self, data: bytes) -> None:
        self.calls.append(("write", data))

    def close(self) -> None:
        self.calls.append(("close", b""))

    def is_closing(self) -> bool:
        return ("close", b"") in self.calls


def calls(use: Callable[[JoinedWrites], Any], turns: int = 1) -> list[tuple[str, bytes]]:
    """What reaches the wire, `turns` of the loop after `use`."""

    async def run() -> list[tuple[str, bytes]]:
        wire = Wire()
        use(JoinedWrites(cast("asyncio.Transport", wire), asyncio.get_running_loop()))
        for _ in range(turns):
            await asyncio.sleep(0)
        return list(wire.calls)

    return asyncio.run(run())


def test_what_is_written_in_one_turn_leaves_together() -> None:
    def answer(transport: JoinedWrites) -> None:
        transport.write(b"head ")
        transport.write(b"body")

    assert calls(answer, turns=0) == []
    assert calls(answer) == [("write", b"head body")]


def test_a_head_without_a_body_leaves_too_and_the_next_turn_is_its_own() -> None:
    def two_answers(transport: JoinedWrites) -> None:
        transport.write(b"first")
        asyncio.get_running_loop().call_later(0, transport.write, b"second")

    assert calls(two_answers, turns=5) == [("write", b"first"), ("write", b"second")]


def test_a_large_piece_leaves_at_once_behind_what_was_held() -> None:
    large = b"x" * (LARGEST + 1)

    def picture(transport: JoinedWrites) -> None:
        transport.write(b"head ")
        transport.write(large)

    assert calls(picture, turns=0) == [("write", b"head " + large)]


def test_a_close_loses_nothing() -> None:
    def last(transport: JoinedWrites) -> None:
        transport.write(b"bye")
        transport.close()
        assert transport.is_closing()

    assert calls(last) == [("write", b"bye"), ("close", b"")]
