"""What a key notices of another one that fills the queue: its submits, polls and requests, alone and beside it.

    python -m benchmarks.tenants [--seconds 10] [--backlog 1000] [--pollers 50]

The node over a worker that pretends. One key asks for a small picture every 50 ms and polls until it is drawn; then
again while another has a backlog of requests and pollers, and somebody tries wrong keys. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import ENDPOINT, Served, body, fake_server
from benchmarks.raw_http import Connection, request
from server.bench.stamp import stamp
from server.gateway.key_file import KeyFile

STEP_S = 0.02
SMALL = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}
LONG = SMALL | {"num_inference_steps": 5}
SUBMIT_EVERY_S = 0.05
POLL_EVERY_S = 0.02
GUESS_EVERY_S = 0.1


@dataclass
class Felt:
    """Milliseconds of one key's calls."""

    submit: list[float] = field(default_factory=list)
    poll: list[float] = field(default_factory=list)
    request: list[float] = field(default_factory=list)

    def p99(self) -> dict[str, float]:
        """The worst but one in a hundred of each."""
        return {name: round(sorted(values)[int(0.99 * (len(values) - 1))], 2) for name, values in vars(self).items()}


class Client:
    """One key at one server."""

    def __init__(self, served: Served, key: str) -> None:
        self._host = f"127.0.0.1:{served.port}"
        self._port = served.port
        self._key = key.encode()

    def ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """One request with this key."""
        return request(method, path, self._host, data).replace(
            b"\r\nHost:", b"\r\nAuthorization: Key " + self._key + b"\r\nHost:", 1
        )

    async def open(self) -> Connection:
        return await Connection.open("127.0.0.1", self._port)

    async def submit(self, connection: Connection, wish: dict[str, Any]) -> tuple[str, float]:
        """The path of its status, and the seconds it took."""
        status, answer, seconds = await connection.fetch(self.ask("POST", ENDPOINT, body(wish)))
        assert status == 200, answer
        return urlsplit(json.loads(answer)["status_url"]).path, seconds


async def small_requests(client: Client, seconds: float) -> Felt:
    """What the well-behaved key feels for so long."""
    felt = Felt()

    async def one() -> None:
        connection = await client.open()
        began = time.perf_counter()
        path, took = await client.submit(connection, SMALL)
        felt.submit.append(1e3 * took)
        while True:
            _, answer, took = await connection.fetch(client.ask("GET", path))
            felt.poll.append(1e3 * took)
            if b'"COMPLETED"' in answer:
                break
            await asyncio.sleep(POLL_EVERY_S)
        felt.request.append(1e3 * (time.perf_counter() - began))
        connection.close()

    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        while time.monotonic() < end:
            group.create_task(one())
            await asyncio.sleep(SUBMIT_EVERY_S)
    return felt


async def fill_queue(client: Client, backlog: int) -> list[str]:
    """As many requests as the greedy key can submit; the paths of their statuses."""
    connection = await client.open()
    paths = [(await client.submit(connection, LONG))[0] for _ in range(backlog)]
    connection.close()
    return paths


async def poll_for_ever(client: Client, path: str) -> None:
    with closing(await client.open()) as connection:
        while True:
            await connection.fetch(client.ask("GET", path))
            await asyncio.sleep(0.1)


async def guess_for_ever(served: Served) -> None:
    number = 0
    while True:
        guess = Client(served, f"guess-{(number := number + 1)}")
        with closing(await guess.open()) as connection:
            await connection.fetch(guess.ask("GET", "/v1/models"))
        await asyncio.sleep(GUESS_EVERY_S)


async def measure(served: Served, keys: tuple[str, str], seconds: float, backlog: int, pollers: int) -> dict[str, Any]:
    """The modest key's 99th percentiles alone and beside the greedy one, and their ratios."""
    modest, greedy = (Client(served, key) for key in keys)
    await small_requests(modest, 1.0)
    alone = await small_requests(modest, seconds)
    paths = await fill_queue(greedy, backlog)
    noise = [asyncio.create_task(poll_for_ever(greedy, path)) for path in paths[-pollers:]]
    noise.append(asyncio.create_task(guess_for_ever(served)))
    beside = await small_requests(modest, seconds)
    for task in noise:
        task.cancel()
    await asyncio.gather(*noise, return_exceptions=True)
    first, second = alone.p99(), beside.p99()
    ratios = {name: round(second[name] / first[name], 2) for name in first}
    return {"requests": len(beside.request), "alone_p99_ms": first, "beside_p99_ms": second, "ratio": ratios}


def run(folder: Path, seconds: float, backlog: int, pollers: int) -> dict[str, Any]:
    """On a server of its own in that folder."""
    file = KeyFile(folder / "keys.json")
    keys = file.issue("modest")[0], file.issue("greedy")[0]
    with fake_server(folder, STEP_S) as served:
        return asyncio.run(measure(served, keys, seconds, backlog, pollers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--backlog", type=int, default=1000)
    parser.add_argument("--pollers", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = run(Path(name) / "node", arguments.seconds, arguments.backlog, arguments.pollers)
    print(json.dumps({"benchmark": "tenants", "environment": stamp(), "backlog": arguments.backlog} | figures))


if __name__ == "__main__":
    main()
