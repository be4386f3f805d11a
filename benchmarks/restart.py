"""How soon a server with a long history answers after a kill: `/livez`, a status, a submit, and a picture.

    python -m benchmarks.restart [--ended 91000] [--waiting 9000] [--log-mb 4]

Fills a data folder through the store, in a process that is killed, its write-ahead log as long as `--log-mb` lets it
grow. Then `fluxserve serve --model fake:` starts on an empty folder and on it. Prints one JSON line; times
are seconds since the start of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from pipelines.protocol.params import GenerationParams
from server.bench.stamp import stamp
from server.jobs.store.job import JobStatus, NewJob, Outcome
from server.jobs.store.sqlite import SqliteStore
from tests.acceptance.serving import Server

ENDPOINT = "fal-ai/flux/dev"
ASKED = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 4, "seed": 1}
PARAMS = GenerationParams("fake", "a red circle", 64, 64, 4, 3.5, 1).to_dict()
DONE = Outcome(
    JobStatus.COMPLETED,
    200,
    {"images": [{"url": f"/files/{'0' * 32}.jpeg", "width": 64, "height": 64}], "seed": 1, "prompt": "a red circle"},
    metrics={"inference_time": 1.0},
    logs=[{"timestamp": "2026-01-01T00:00:00", "level": "INFO", "message": f"step {step}/28"} for step in range(1, 29)],
)
THREADS = 64
"""That submit at once while filling: they share commits."""


def requests(ended: int, waiting: int) -> Iterator[NewJob]:
    """The history: what has ended first, then what waits."""
    for number in range(ended):
        yield NewJob(f"ended-{number}", ENDPOINT, ASKED, None, {"format": "jpeg"}, outcome=DONE)
    for number in range(waiting):
        yield NewJob(f"waiting-{number}", ENDPOINT, ASKED, PARAMS, {"format": "jpeg"})


def fill(folder: Path, ended: int, waiting: int, log_mb: int) -> None:
    """Store the history and die of SIGKILL."""
    store = SqliteStore(folder / "jobs.db")
    store._writer.run(lambda tx: tx.execute(f"PRAGMA wal_autocheckpoint = {log_mb * 256}"))
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(store.enqueue, requests(ended, waiting)):
            pass
    os.sync()  # a history is days old: what its first commit would else wait for is this minute's writing
    os.kill(os.getpid(), signal.SIGKILL)


def start_anew(folder: Path) -> dict[str, float]:
    """Seconds from the start of a server without a history to its first answer."""
    server = Server(folder, model="fake:").start()
    try:
        return {"livez": round(server.wait_live(), 2)}
    finally:
        server.kill_everything()


def start(folder: Path, waiting: int) -> dict[str, float]:
    """Seconds from the start of a server to its answers."""
    server = Server(folder, model="fake:").start()
    seconds: dict[str, float] = {}
    try:
        seconds["livez"] = server.wait_live()
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False, verify=False) as http:

            def ask(name: str, method: str, path: str, **body: Any) -> httpx.Response:
                answer = http.request(method, f"/queue/fal-ai/flux{path}", **body)
                assert answer.status_code in (200, 202), answer.text
                seconds[name] = time.monotonic() - server.started_at
                return answer

            ask("status of a waiting one", "GET", f"/requests/waiting-{waiting - 1}/status")
            ask("result of an ended one", "GET", "/requests/ended-0")
            ask("submit", "POST", "/dev", json=ASKED)
        seconds["readyz"] = server.wait_ready()
    finally:
        server.kill_everything()
    return {name: round(value, 2) for name, value in seconds.items()}


def measure(folder: Path, ended: int, waiting: int, log_mb: int) -> dict[str, Any]:
    """The report; what the folder holds, in MB, beside the times."""
    folder.mkdir(mode=0o700)
    filling = get_context("spawn").Process(target=fill, args=(folder, ended, waiting, log_mb))
    filling.start()
    filling.join()
    assert filling.exitcode == -signal.SIGKILL, "the history could not be stored"
    sizes = {name: round((folder / name).stat().st_size / 1e6, 1) for name in ("jobs.db", "jobs.db-wal")}
    seconds = {"without a history": start_anew(folder.with_name("empty")), "with it": start(folder, waiting)}
    return {"benchmark": "restart", "ended": ended, "waiting": waiting, "mb": sizes, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart")
    parser.add_argument("--ended", type=int, default=91_000)
    parser.add_argument("--waiting", type=int, default=9_000)
    parser.add_argument("--log-mb", type=int, default=4, help="the write-ahead log is written back at this size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder) / "data", **vars(arguments))
    print(json.dumps(report | {"stamp": stamp()}))


if __name__ == "__main__":
    main()
