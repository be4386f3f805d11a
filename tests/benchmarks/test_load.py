"""The load generator against a real server with a worker that pretends: it counts, and says what it saw."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from benchmarks import load, polls
from benchmarks.raw_http import Connection, EventStream, request


@pytest.mark.timeout(300)
def test_a_small_crowd_is_answered_and_tells_of_itself(tmp_path: Path) -> None:
    with load.fake_server(tmp_path / "node", step_s=0.05) as served:
        report = asyncio.run(load.measure(served, pollers=6, streams=5, seconds=2.0))
    for kind, clients in (("status", 6), ("stream", 5)):
        figures = report[kind]
        crowd = figures["crowd"]
        assert figures["clients"] == clients
        assert crowd["errors"] == 0
        assert crowd["answers"] > 0
        assert crowd["latency_ms"]["p99"] >= crowd["latency_ms"]["p50"] > 0
        assert crowd["own_lag_ms"]["max"] >= 0
        assert figures["submit_ms"]["p50"] > 0
        assert 0 < figures["server_processor"] <= 2
    # Each poller asks again a tenth of a second after an answer, no sooner.
    assert report["status"]["crowd"]["answers_per_s"] <= 6 / 0.1 * 1.5
    lines = load.rows(report)
    figures_shown = {(line["crowd"], line["figure"]): line for line in lines}
    assert figures_shown["6 status", "status p99"]["goal"] == "<= 100"
    assert figures_shown["5 stream", "event lag p99"]["goal"] == "<= 250"
    assert float(figures_shown["6 status", "status p99"]["measured"]) > 0


@pytest.mark.timeout(300)
def test_the_price_of_a_poll_is_counted_over_all_that_were_asked(tmp_path: Path) -> None:
    with load.fake_server(tmp_path / "node", step_s=0.5) as served:
        before = psutil.Process(served.pid).cpu_times()
        figures = asyncio.run(polls.measure(served, connections=7, total=500))
        after = psutil.Process(served.pid).cpu_times()
    assert figures["polls"] == 497
    assert figures["ms"] == pytest.approx(figures["user_ms"] + figures["system_ms"])
    assert 0 < figures["ms"] * figures["polls"] <= 1e3 * (after.user + after.system - before.user - before.system)


class Scripted(asyncio.Protocol):
    """A server that answers every request with the given pieces, one write each."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._answering = asyncio.ensure_future(self._answer())

    async def _answer(self) -> None:
        for piece in self._pieces:
            self._transport.write(piece)
            await asyncio.sleep(0.01)


async def port_of(*pieces: bytes) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(lambda: Scripted(*pieces), "127.0.0.1", 0)
    return server, int(server.sockets[0].getsockname()[1])


def test_an_answer_in_pieces_is_put_together_and_the_next_one_kept_apart() -> None:
    async def ask() -> list[tuple[int, bytes]]:
        pieces = (b"HTTP/1.1 202 Accepted\r\nContent-", b"Length: 5\r\nx: y\r\n\r\nhel", b"lo")
        server, port = await port_of(*pieces)
        async with server:
            connection = await Connection.open("127.0.0.1", port)
            answers = [(await connection.fetch(request("GET", "/", "x")))[:2] for _ in range(2)]
            connection.close()
        return answers

    assert asyncio.run(ask()) == [(202, b"hello")] * 2


def test_events_come_whole_however_they_are_cut() -> None:
    async def listen() -> list[bytes | None]:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = (head + b"c\r\ndata: 1", b"23\n\n\r\n", b"8\r\n: ping\n\n\r\na\r\ndata: 45\n\n\r\n", b"0\r\n\r\n")
        server, port = await port_of(*pieces)
        seen: list[bytes | None] = []
        ended = asyncio.Event()

        def take(data: bytes | None) -> None:
            seen.append(data)
            if data is None:
                ended.set()

        async with server:
            stream = request("GET", "/", "x")
            await asyncio.get_running_loop().create_connection(lambda: EventStream(stream, take), "127.0.0.1", port)
            await asyncio.wait_for(ended.wait(), 30)
        return seen

    assert asyncio.run(listen()) == [b"123", b"45", None]


def test_a_request_carries_its_body_and_its_length() -> None:
    data = request("POST", "/queue/x", "h:1", b'{"a": 1}')
    assert data.startswith(b"POST /queue/x HTTP/1.1\r\nHost: h:1\r\n")
    assert data.endswith(b'Content-Length: 8\r\n\r\n{"a": 1}')
