"""Malformed inputs against a whole server: nothing may crash, answer 5xx, hang, or grow.

    python -m benchmarks.fuzz [--inputs 10000] [--seed 1]

Three in ten come from schemathesis, which breaks the server's own OpenAPI document; the others are requests broken byte
by byte and sent over bare sockets. All bring a key that may do everything. The node runs over a worker that pretends.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation.modes import GenerationMode

from benchmarks.broken_requests import broken_requests
from benchmarks.load import Served, fake_server
from server.bench.stamp import stamp

SENDERS = 16
ANSWER_S = 20.0
"""A connection on which nothing has come for this long has been forgotten."""

HALF_S = 0.5
"""One on which nothing has come for this long has asked half of something."""
BY_SCHEMA = 0.3
KEY = "fuzz:secret"
"""Of the operator: what asks for less would be refused before it is read."""
MAX_GROWTH_MB = 50


@dataclass
class Seen:
    """What came of the inputs so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def note(self, status: int, seconds: float, what: object) -> None:
        """One answer; a 5xx is kept with what caused it."""
        self.statuses[f"{status // 100}xx"] += 1
        if status >= 500:
            self.faults.append(f"{status} for {str(what)[:400]}")
        elif status >= 400:
            self.waits_s.append(seconds)


async def send_broken(served: Served, number: int, seed: int, seen: Seen) -> None:
    """So many broken requests, each on a connection of its own."""
    requests = broken_requests(number, seed, f"127.0.0.1:{served.port}", KEY)

    async def sender() -> None:
        for data in requests:
            await _send_one(served.port, data, seen)

    async with asyncio.TaskGroup() as group:
        for _ in range(SENDERS):
            group.create_task(sender())


async def _send_one(port: int, data: bytes, seen: Seen) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(data)
            await writer.drain()
            answer = await _first_of(reader) or await _after_the_end(reader, writer)
        if answer.startswith(b"HTTP/1.1 "):
            seen.note(int(answer[9:12]), loop.time() - began, data)
        else:
            seen.statuses["closed without an answer"] += 1
    except TimeoutError:
        seen.faults.append(f"no answer and no end for {data[:400]!r}")
    except OSError:  # also when the server has closed before all was written
        seen.statuses["closed without an answer"] += 1
    finally:
        writer.close()


async def _first_of(reader: asyncio.StreamReader) -> bytes:
    """The beginning of an answer; nothing if the server waits for more of the request."""
    try:
        return await asyncio.wait_for(reader.read(4096), HALF_S)
    except TimeoutError:
        return b""


async def _after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What is answered once no more can come."""
    writer.write_eof()
    return await reader.read()


def send_by_schema(served: Served, number: int, seen: Seen) -> None:
    """So many inputs that the document forbids, spread over all its operations."""
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json", wait_for_schema=60)
    operations: list[Any] = [found.ok() for found in document.get_all_operations()]  # type: ignore[union-attr]
    breakable = [
        operation for operation in operations if operation.body or operation.query or operation.path_parameters
    ]
    each = max(1, number // len(breakable))
    patient = settings(
        max_examples=each,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @patient
    def send(case: Any) -> None:
        answer = case.call(timeout=ANSWER_S, headers={"authorization": f"Key {KEY}"})
        seen.note(answer.status_code, answer.elapsed, f"{case.method} {case.path} {case.body!r}")

    for operation in breakable:
        # Of a few operations everything is allowed: nothing they could be sent breaks the document.
        with suppress(Unsatisfiable):
            given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))(send)()


def fuzz(inputs: int, seed: int, folder: Path, schema_share: float = BY_SCHEMA) -> dict[str, Any]:
    """The report on so many inputs; its `faults` are empty if all went well."""
    by_schema = int(inputs * schema_share)
    warm_up = max(50, inputs // 20)
    seen = Seen()
    with fake_server(folder, step_s=0.0, api_keys=[KEY]) as served:
        process = psutil.Process(served.pid)
        asyncio.run(send_broken(served, warm_up, seed + 1, Seen()))
        if by_schema:
            send_by_schema(served, min(by_schema, 200), Seen())
        before = process.memory_info().rss
        if by_schema:
            send_by_schema(served, by_schema, seen)
        asyncio.run(send_broken(served, inputs - sum(seen.statuses.values()), seed, seen))
        growth_mb = (process.memory_info().rss - before) / 2**20
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            seen.faults.append("the server died")
    if growth_mb > MAX_GROWTH_MB:
        seen.faults.append(f"memory grew by {growth_mb:.0f} MB")
    waits = sorted(seen.waits_s)
    return {
        "inputs": sum(seen.statuses.values()),
        "answers": dict(seen.statuses),
        "faults": seen.faults,
        "refusal_p99_ms": round(1e3 * waits[int(0.99 * (len(waits) - 1))], 1) if waits else None,
        "memory_growth_mb": round(growth_mb, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = fuzz(arguments.inputs, arguments.seed, Path(name) / "node")
    print(json.dumps({"benchmark": "fuzz", "seed": arguments.seed, "environment": stamp()} | report))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
