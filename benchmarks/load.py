"""What the API does under a crowd: 1,000 pollers, then 500 status streams, each beside 4 running requests.

    python -m benchmarks.load [--seconds 20] [--model flux-shapes] [--out load.json]

One real server process. Without `--model` its worker only pretends to draw, so that the node alone is measured; with
one, the engine takes its share of the cores. The crowd is a process of its own, which reports its own lag and its share
of a core. Beside the crowd somebody submits ten requests a second, and somebody asks every 5 ms whether a result is
there: its age is counted from the time stamp of the picture's file (which may be up to 4 ms early).

Prints a table beside the goals of the project, then one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.crowd import COUNTING, SLOTS
from benchmarks.raw_http import Connection, request
from server.bench.figures import spread
from server.bench.report import table
from server.bench.stamp import stamp
from server.files.folder_objects import FolderObjects
from tests.acceptance.serving import Server

SUBMIT_PAUSE_S = 0.1
PROBE_S = 0.005
LONG_STEPS = 50
ENDPOINT = "/queue/fal-ai/flux/dev"
QUICK = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}
GOALS_MS = {"status p99": 100, "event lag p99": 250, "submit p99": 100, "visible p99": 50, "memory a stream, KB": 100}


@dataclass(frozen=True, slots=True)
class Served:
    """A server that takes requests."""

    port: int
    pid: int
    data_dir: Path


@dataclass
class Beside:
    """What was measured beside the crowd, in seconds."""

    submits: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)


@contextmanager
def fake_server(folder: Path, step_s: float, **more: Any) -> Iterator[Served]:
    """The node over the fake engine. Args: more: settings."""
    values = {"models": [f"fake:step_ms={1e3 * step_s:g}"], **more}
    command = [sys.executable, "-m", "benchmarks.load_server", str(folder)]
    command += [f"{name}={json.dumps(value)}" for name, value in values.items()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server ended at its start"
        yield Served(int(line), process.pid, folder)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def engine_server(folder: Path, model: str) -> Iterator[Served]:
    """`fluxserve serve` as it is."""
    server = Server(folder, model=model).start()
    try:
        server.wait_ready()
        yield Served(server.port, server.pid, folder)
    finally:
        server.close()


def body(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


class Company:
    """Who is there beside the crowd: four long requests that always run, a submitter, and a prober."""

    def __init__(self, served: Served, crowd: asyncio.subprocess.Process) -> None:
        self._host = f"127.0.0.1:{served.port}"
        self._port = served.port
        self._objects = FolderObjects(served.data_dir / "files")
        self._crowd = crowd
        self._connections: list[Connection] = []
        self.beside = Beside()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for slot in range(SLOTS):
                    group.create_task(self._keep_running(slot))
                group.create_task(self._submit())
                group.create_task(self._probe())
        finally:
            for connection in self._connections:
                connection.close()

    async def _connect(self) -> Connection:
        self._connections.append(await Connection.open("127.0.0.1", self._port))
        return self._connections[-1]

    async def _keep_running(self, slot: int) -> None:
        """One long request after another; the crowd is told which."""
        connection = await self._connect()
        wish = body({"prompt": "a red circle", "num_inference_steps": LONG_STEPS, "seed": slot})
        while True:
            path, _ = await self._post(connection, wish)
            assert self._crowd.stdin is not None
            self._crowd.stdin.write(f"{slot} {path}\n".encode())
            while await self._status(connection, path) != "COMPLETED":  # noqa: ASYNC110 - it is a poller
                await asyncio.sleep(0.2)

    async def _submit(self) -> None:
        connection = await self._connect()
        while True:
            _, took = await self._post(connection, body(QUICK))
            self.beside.submits.append(took)
            await asyncio.sleep(SUBMIT_PAUSE_S)

    async def _probe(self) -> None:
        """How old a picture's file is when its request is first seen as completed."""
        connection = await self._connect()
        while True:
            path, _ = await self._post(connection, body(QUICK))
            while await self._status(connection, path) != "COMPLETED":  # noqa: ASYNC110 - it is a poller
                await asyncio.sleep(PROBE_S)
            seen = time.time()
            _, result, _ = await connection.fetch(request("GET", path, self._host))
            name = urlsplit(json.loads(result)["images"][0]["url"]).path.rpartition("/")[2]
            file = self._objects.path(name)
            assert file is not None, f"no file {name}"
            self.beside.visible.append(seen - file.stat().st_mtime)

    async def _post(self, connection: Connection, wish: bytes) -> tuple[str, float]:
        """The request's path, and the seconds of its submit."""
        status, answer, took = await connection.fetch(request("POST", ENDPOINT, self._host, wish))
        assert status == 200, (status, answer[:200])
        return urlsplit(json.loads(answer)["response_url"]).path, took

    async def _status(self, connection: Connection, path: str) -> str:
        _, answer, _ = await connection.fetch(request("GET", f"{path}/status", self._host))
        return str(json.loads(answer)["status"])


async def regime(served: Served, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """One crowd and who is beside it."""
    server = psutil.Process(served.pid)
    before = server.memory_info().rss
    command = [
        "-m",
        "benchmarks.crowd",
        "--port",
        served.port,
        "--kind",
        kind,
        "--clients",
        clients,
        "--seconds",
        seconds,
    ]
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, command), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    company = Company(served, crowd)
    task = asyncio.create_task(company.run())
    clock = asyncio.create_task(show_clock(f"{clients} clients: {kind}", seconds, is_there := asyncio.Event()))
    try:
        assert await _line(crowd, task) == COUNTING
        is_there.set()
        company.beside = Beside()
        began, processor = time.perf_counter(), _processor_s(server)
        figures: dict[str, Any] = json.loads(await _line(crowd, task))
        share = (_processor_s(server) - processor) / (time.perf_counter() - began)
        after = server.memory_info().rss
    finally:
        for running in (clock, task):
            running.cancel()
        await asyncio.gather(clock, task, return_exceptions=True)
        if crowd.returncode is None:
            crowd.terminate()
        await crowd.wait()
    return {
        "clients": clients,
        "crowd": figures,
        "submit_ms": spread([took * 1e3 for took in company.beside.submits]) if company.beside.submits else None,
        "visible_ms": spread([age * 1e3 for age in company.beside.visible]) if company.beside.visible else None,
        "server_processor": share,
        "memory_kb_each": (after - before) / clients / 1024,
    }


async def _line(crowd: asyncio.subprocess.Process, company: asyncio.Task[None]) -> str:
    """What the crowd says next. Raises: whatever ended the company before that."""
    assert crowd.stdout is not None
    reading = asyncio.create_task(crowd.stdout.readline())
    await asyncio.wait({reading, company}, return_when=asyncio.FIRST_COMPLETED)
    if company.done():
        reading.cancel()
        company.result()
    return reading.result().decode().strip()


async def show_clock(what: str, seconds: float, is_there: asyncio.Event) -> None:
    """A bar that stands until the crowd is there and then goes on, until cancelled."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
    # Twice a second and without a thread: what watches must not take a core from what is measured.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        bar = bars.add_task(what, total=seconds)
        bars.refresh()
        await is_there.wait()
        while True:
            await asyncio.sleep(0.5)
            bars.update(bar, advance=0.5, refresh=True)


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The table: figures in milliseconds unless they say otherwise, beside their goals."""
    lines: list[dict[str, str]] = []

    def line(regime: str, figure: str, value: float | None, form: str = ".1f") -> None:
        goal = GOALS_MS.get(figure)
        shown = "" if value is None else format(value, form)
        lines.append(
            {"crowd": regime, "figure": figure, "measured": shown, "goal": "" if goal is None else f"<= {goal}"}
        )

    for kind, what in (("status", "status"), ("stream", "event lag")):
        figures = report[kind]
        name, crowd = f"{figures['clients']} {kind}", figures["crowd"]
        latency = crowd["latency_ms"] or {}
        line(name, f"{what} p50", latency.get("p50"))
        line(name, f"{what} p99", latency.get("p99"))
        line(name, "answers a second", crowd["answers_per_s"], ".0f")
        line(name, "submit p50", (figures["submit_ms"] or {}).get("p50"))
        line(name, "submit p99", (figures["submit_ms"] or {}).get("p99"))
        line(name, "visible p50", (figures["visible_ms"] or {}).get("p50"))
        line(name, "visible p99", (figures["visible_ms"] or {}).get("p99"))
        line(name, "server, share of a core", figures["server_processor"], ".0%")
        line(
            name,
            "server, ms of a core an answer",
            _ratio(figures["server_processor"] * 1e3, crowd["answers_per_s"]),
            ".3f",
        )
        line(name, "crowd, share of a core", crowd["own_processor"], ".0%")
        line(name, "crowd's own lag p99", crowd["own_lag_ms"]["p99"])
        line(name, "errors", crowd["errors"], ".0f")
    line(f"{report['stream']['clients']} stream", "memory a stream, KB", report["stream"]["memory_kb_each"])
    return lines


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


async def warm_up(served: Served) -> None:
    """Until a request has ended: the first picture waits for its encoder to start."""
    host = f"127.0.0.1:{served.port}"
    connection = await Connection.open("127.0.0.1", served.port)
    _, answer, _ = await connection.fetch(request("POST", ENDPOINT, host, body(QUICK)))
    path = urlsplit(json.loads(answer)["status_url"]).path
    while b"COMPLETED" not in (await connection.fetch(request("GET", path, host)))[1]:  # noqa: ASYNC110 - it is a poller
        await asyncio.sleep(0.1)
    connection.close()


async def measure(served: Served, pollers: int, streams: int, seconds: float) -> dict[str, Any]:
    """Streams first: what a stream takes must not hide in memory that the pollers left behind."""
    await warm_up(served)
    streaming = await regime(served, "stream", streams, seconds)
    return {"status": await regime(served, "status", pollers, seconds), "stream": streaming}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each crowd")
    parser.add_argument("--pollers", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--model", help="with this model's engine; default: a worker that pretends")
    parser.add_argument("--step-s", type=float, default=0.2, help="seconds a step of the worker that pretends")
    parser.add_argument("--out", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "node"
        model = arguments.model
        started = engine_server(folder, model) if model else fake_server(folder, arguments.step_s)
        with started as served:
            figures = uvloop.run(measure(served, arguments.pollers, arguments.streams, arguments.seconds))
    report = {"benchmark": "load", "model": model or "scripted worker", "environment": stamp()} | figures
    print(table(rows(report)))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
