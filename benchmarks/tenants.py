"""What a key notices of another one that fills the queue: its submits, polls and requests, alone and beside it.

    python -m benchmarks.tenants [--seconds 10] [--backlog 1000] [--pollers 50] [--floods 0] [--rounds 1] ...

The node over the fake engine. One key asks for a small picture every 50 ms and polls until it is drawn; then again
while another has a backlog of requests, pollers and connections that submit without a pause, and somebody tries wrong
keys. Beside what the clock says of a call it tells the server's work meanwhile, in milliseconds of processor time: all
that stands before the answer, whoever else has the cores. Prints one JSON line; of several rounds, each on a server of
its own, the middle of their ratios, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import ENDPOINT, Served, body, fake_server
from benchmarks.raw_http import Connection, request
from server.bench.stamp import stamp
from server.gateway.key_file import KeyFile
from server.jobs.limits import Limits

STEP_S = 0.02
SMALL = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}
LONG = SMALL | {"num_inference_steps": 50}
SUBMIT_EVERY_S = 0.05
POLL_EVERY_S = 0.02
GUESS_EVERY_S = 0.1


@dataclass
class Felt:
    """Milliseconds of one key's calls; `work` of the server's processor time."""

    submit: list[float] = field(default_factory=list)
    poll: list[float] = field(default_factory=list)
    request: list[float] = field(default_factory=list)
    submit_work: list[float] = field(default_factory=list)
    poll_work: list[float] = field(default_factory=list)

    def at(self, share: float) -> dict[str, float]:
        """Of each what this share of the calls stayed below."""
        return {name: round(sorted(values)[int(share * (len(values) - 1))], 2) for name, values in vars(self).items()}


@dataclass(frozen=True, slots=True)
class Greed:
    """What the other key does.

    Args: floods: connections that submit; flood_kb: of each body, which is refused then; per_minute: submits that it
        may do; running: its requests in workers at once, so that the device has room for others and the server is
        measured."""

    backlog: int = 1000
    pollers: int = 50
    floods: int = 0
    flood_kb: int = 0
    per_minute: int | None = None
    running: int | None = 4


class Client:
    """One key at one server."""

    def __init__(self, port: int, key: str) -> None:
        self._host = f"127.0.0.1:{port}"
        self._port = port
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


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process have run (the clock of clock_getcpuclockid)."""
    return time.clock_gettime(~pid << 3 | 2)


async def small_requests(client: Client, pid: int, seconds: float) -> Felt:
    """What the well-behaved key feels for so long. Args: pid: of the server."""
    felt = Felt()

    async def one() -> None:
        connection = await client.open()
        began, before = time.perf_counter(), processor_s(pid)
        path, took = await client.submit(connection, SMALL)
        felt.submit.append(1e3 * took)
        felt.submit_work.append(1e3 * (processor_s(pid) - before))
        while True:
            before = processor_s(pid)
            _, answer, took = await connection.fetch(client.ask("GET", path))
            felt.poll.append(1e3 * took)
            felt.poll_work.append(1e3 * (processor_s(pid) - before))
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


async def submit_for_ever(client: Client, kb: int) -> None:
    """As fast as one connection can, accepted or not."""
    wish = body({"image_url": "data:image/png;base64," + 1000 * kb * "A"} if kb else LONG)
    with closing(await client.open()) as connection:
        while True:
            await connection.fetch(client.ask("POST", ENDPOINT, wish))


async def guess_for_ever(port: int) -> None:
    number = 0
    while True:
        guess = Client(port, f"guess-{(number := number + 1)}")
        with closing(await guess.open()) as connection:
            await connection.fetch(guess.ask("GET", "/v1/models"))
        await asyncio.sleep(GUESS_EVERY_S)


def make_noise(port: int, key: str, paths: list[str], floods: int, kb: int) -> None:
    """What the greedy key does, until killed: in a process of its own, so as not to hold up the modest one."""

    async def all_of_it() -> None:
        greedy = Client(port, key)
        await asyncio.gather(
            guess_for_ever(port),
            *(poll_for_ever(greedy, path) for path in paths),
            *(submit_for_ever(greedy, kb) for _ in range(floods)),
        )

    asyncio.run(all_of_it())


@contextmanager
def noise(port: int, key: str, paths: list[str], greed: Greed) -> Iterator[None]:
    what = (port, key, paths, greed.floods, greed.flood_kb)
    process = get_context("spawn").Process(target=make_noise, args=what)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


async def measure(served: Served, keys: tuple[str, str], seconds: float, greed: Greed) -> dict[str, Any]:
    """The modest key's 99th percentiles alone and beside the greedy one, and their ratios."""
    modest, greedy = (Client(served.port, key) for key in keys)
    await small_requests(modest, served.pid, 1.0)
    alone = await small_requests(modest, served.pid, seconds)
    paths = await fill_queue(greedy, greed.backlog)
    with noise(served.port, keys[1], paths[-greed.pollers :], greed):
        await asyncio.sleep(1.0)  # it starts
        beside = await small_requests(modest, served.pid, seconds)
    report: dict[str, Any] = {"requests": len(beside.request)}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        first, second = alone.at(share), beside.at(share)
        report |= {f"alone_{name}_ms": first, f"beside_{name}_ms": second}
        report[f"{name}_ratio"] = {what: round(second[what] / first[what], 2) for what in first}
    return report


def run(folder: Path, seconds: float, greed: Greed) -> dict[str, Any]:
    """On a server of its own in that folder."""
    file = KeyFile(folder / "keys.json")
    keys = file.issue("modest")[0], file.issue("greedy", limits=Limits(greed.running, per_minute=greed.per_minute))[0]
    with fake_server(folder, STEP_S) as served:
        return asyncio.run(measure(served, keys, seconds, greed))


def middle(rounds: list[dict[str, Any]], name: str) -> dict[str, float]:
    """The median over rounds of each part of a figure."""
    return {what: median(each[name][what] for each in rounds) for what in rounds[0][name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--backlog", type=int, default=1000)
    parser.add_argument("--pollers", type=int, default=50)
    parser.add_argument("--floods", type=int, default=0, help="connections that submit as fast as they can")
    parser.add_argument("--flood-kb", type=int, default=0, help="of each of their bodies, which are refused then")
    parser.add_argument("--per-minute", type=int, default=None, help="submits that the greedy key may do")
    parser.add_argument("--running", type=int, default=4, help="requests of the greedy key that workers hold at once")
    parser.add_argument("--rounds", type=int, default=1, help="each on a server of its own")
    arguments = parser.parse_args()
    seconds, count = vars(arguments).pop("seconds"), vars(arguments).pop("rounds")
    greed = Greed(**vars(arguments))
    with tempfile.TemporaryDirectory() as name:
        rounds = [run(Path(name) / f"node-{number}", seconds, greed) for number in range(count)]
    ratios = {name: middle(rounds, name) for name in ("p50_ratio", "p99_ratio")}
    figures = rounds[0] if count == 1 else ratios | {"rounds": rounds}
    print(json.dumps({"benchmark": "tenants", "environment": stamp()} | asdict(greed) | figures))


if __name__ == "__main__":
    main()
