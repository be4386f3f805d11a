"""A server that is killed at every named point of a request's life, one after the other, over one data folder.

    python -m benchmarks.fault_points

Before each death a request is submitted with a key of its own, and again in a last life that nobody ends: none may be
lost, none may be there twice, each must end with its picture and be told to its webhook. Prints one JSON line; exit
status 1 if anything was lost, doubled or torn, or a point was not reached.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos import Chaos, is_whole
from benchmarks.dying_server import POINTS
from server.bench.stamp import stamp
from tests.server.receiver import receiving

PATIENCE_S = 60.0


@contextmanager
def life(history: Chaos, point: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server over the history's folder that dies at `point`, or lives if there is no such."""
    settings = ['models=["fake:step_ms=10"]', f"port={history.port}", 'allow_private_cidrs=["127.0.0.0/8"]']
    command = [sys.executable, "-m", "benchmarks.dying_server", point, str(history.folder), *settings]
    with (history.folder / "output.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def die_at(history: Chaos, http: httpx.Client, number: int, point: str) -> bool:
    """Submit one request to a server that dies at this point; whether it did."""
    deadline = time.monotonic() + PATIENCE_S
    is_taken = False
    with life(history, point) as server:
        while server.poll() is None and time.monotonic() < deadline:
            is_taken = is_taken or history._submit(http, number)
            time.sleep(0.02)
        return server.returncode == -signal.SIGKILL


def fault_points(folder: Path, points: Sequence[str] = POINTS) -> dict[str, Any]:
    """The report on one death at each point."""
    with receiving() as receiver:
        history = Chaos(folder, len(points), len(points), random.Random(0), receiver)
        with httpx.Client(base_url=f"http://127.0.0.1:{history.port}", timeout=20) as http:
            reached = {point: die_at(history, http, number, point) for number, point in enumerate(points)}
            with life(history, "none"):
                for number in range(len(points)):
                    history._until(lambda number=number: history._submit(http, number))
                history._until(lambda: history._unfinished() == 0)
                history._until(lambda: len(history._told()) >= len(points))
        history.acknowledged = sorted(set(history.acknowledged))
        report = history.report()
    kept = ("requests", "lost", "doubled", "torn", "failed")
    missed = [point for point, was_reached in reached.items() if not was_reached]
    return {"benchmark": "fault_points", "deaths": sum(reached.values()), "missed": missed} | {
        name: report[name] for name in kept
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = fault_points(Path(folder))
    print(json.dumps(report | {"stamp": stamp()}), flush=True)
    sys.exit(bool(report["missed"]) or not is_whole(report))


if __name__ == "__main__":
    main()
