"""Processor time of the server a status poll: a figure that other work on the cores changes little.

    python -m benchmarks.polls [--polls 20000] [--connections 100]

The node over a worker that pretends, four requests running. Every connection asks again as soon as it is answered, so
this says what an answer costs and nothing of how long one waits: that is `benchmarks.load`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import uvloop

from benchmarks.crowd import SLOTS
from benchmarks.load import ENDPOINT, LONG_STEPS, Served, body, fake_server, warm_up
from benchmarks.raw_http import Connection, request
from server.bench.stamp import stamp


async def start_long_requests(served: Served) -> list[bytes]:
    """Four requests that outlive the measurement; what a poll of each is on the wire."""
    host = f"127.0.0.1:{served.port}"
    connection = await Connection.open("127.0.0.1", served.port)
    wish = body({"prompt": "a red circle", "num_inference_steps": LONG_STEPS})
    answers = [json.loads((await connection.fetch(request("POST", ENDPOINT, host, wish)))[1]) for _ in range(SLOTS)]
    polls = [request("GET", urlsplit(answer["status_url"]).path, host) for answer in answers]
    for poll in polls:
        while b"IN_PROGRESS" not in (await connection.fetch(poll))[1]:  # noqa: ASYNC110 - it is a poller
            await asyncio.sleep(0.05)
    connection.close()
    return polls


async def ask_all(served: Served, polls: list[bytes], connections: int, total: int) -> None:
    """So many polls altogether, each connection one at a time."""

    async def ask(number: int) -> None:
        connection = await Connection.open("127.0.0.1", served.port)
        for _ in range(total // connections):
            status, _, _ = await connection.fetch(polls[number % SLOTS])
            assert status == 202, status
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(ask(number))


async def measure(served: Served, connections: int, total: int) -> dict[str, float]:
    """Milliseconds of a core an answer, in the program and in the kernel for it."""
    await warm_up(served)
    polls = await start_long_requests(served)
    await ask_all(served, polls, connections, connections * 10)
    server = psutil.Process(served.pid)
    before = server.cpu_times()
    await ask_all(served, polls, connections, total)
    after = server.cpu_times()
    asked = total // connections * connections
    user, system = (1e3 * (getattr(after, kind) - getattr(before, kind)) / asked for kind in ("user", "system"))
    return {"polls": asked, "user_ms": user, "system_ms": system, "ms": user + system}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--polls", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, fake_server(Path(name) / "node", step_s=5.0) as served:
        figures = uvloop.run(measure(served, arguments.connections, arguments.polls))
    print("a status poll takes {ms:.3f} ms of a core: {user_ms:.3f} user, {system_ms:.3f} system".format(**figures))
    print(json.dumps({"benchmark": "polls", "environment": stamp()} | figures))


if __name__ == "__main__":
    main()
