"""What a page of usage and of request search takes over many stored requests.

    python -m benchmarks.accounts [--requests 100000] [--repeat 20]

Requests of 30 days over five endpoints and keys, each with a team (10) and a user (1,000), one in a hundred failed.
Milliseconds of the answer as JSON, in process: routes, store and SQLite, without the socket; and of the processor,
which other work on the machine does not change. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from server.api.accounts import iso
from server.api.endpoints import ENDPOINTS
from server.api.prices import Prices
from server.bench.stamp import stamp
from server.files.folder_objects import FolderObjects
from server.gateway.keys import ANYBODY
from server.jobs.live import LiveJobs
from server.jobs.service import JobService
from server.jobs.store.batches import Transaction
from server.jobs.store.job import JobStatus, NewJob, Outcome
from server.jobs.store.sqlite import SqliteStore
from server.routes.system.accounts import accounts_router

DAYS = 30
AT_ONCE = 500
START = 1_767_225_600.0  # 2026-01-01
SEARCH = "/v1/models/requests/by-endpoint"
COLOURS = ("red", "green", "blue", "yellow", "violet")
PICTURE = {"url": "/files/a.png", "content_type": "image/png", "width": 1024, "height": 1024}
LOG = [{"message": f"step {step}/28", "level": "INFO", "timestamp": "2026-01-01T00:00:00+00:00"} for step in range(28)]


def new_job(number: int) -> NewJob:
    """One request that has ended."""
    is_good = number % 100 != 99
    prompt = f"a {COLOURS[number % 5]} circle on shelf {number}"
    body: dict[str, Any] = {"images": [PICTURE], "prompt": prompt, "seed": number} if is_good else {"detail": "no"}
    outcome = Outcome(JobStatus.COMPLETED if is_good else JobStatus.FAILED, 200 if is_good else 500, body, logs=LOG)
    return NewJob(
        f"request-{number}",
        list(ENDPOINTS)[number % 5],
        {"prompt": prompt},
        {"model": "flux-shapes", "prompt": prompt, "seed": number},
        key_id=f"key-{number // 7 % 5}",
        tags={"team": f"t{number % 10}", "user": str(number * 7919 % 1000)},
        outcome=outcome,
    )


def fill(folder: Path, requests: int) -> SqliteStore:
    """A store with so many requests, evenly over the days."""
    now = [START]
    store = SqliteStore(folder / "jobs.db", lambda: now[0])

    def put(tx: Transaction, first: int) -> None:
        now[0] = START + DAYS * 86400 * first / requests
        for number in range(first, min(first + AT_ONCE, requests)):
            store._insert(tx, new_job(number), None, None)

    for first in range(0, requests, AT_ONCE):  # not one by one, as 100,000 commits would take an hour on a busy disk
        store._writer.run(partial(put, first=first))
    return store


def questions(requests: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Path and query of every page that is asked for. Args: requests: how many there are."""
    month = {"start": iso(START), "end": iso(START + DAYS * 86400), "limit": 1000}
    usage = "/v1/models/usage"
    return {
        "usage_by_day": (usage, month),
        "usage_by_user": (usage, month | {"tag": "user"}),
        "usage_by_user_summary": (usage, month | {"tag": "user", "expand": "summary"}),
        "usage_of_a_user": (usage, month | {"tag": "user=7"}),
        "analytics_of_a_month": ("/v1/models/analytics", {**month, "expand": "request_count,p90_duration"}),
        "search_newest": (SEARCH, {"limit": 100}),
        "search_user": (SEARCH, {"limit": 100, "tag": "user=7"}),
        "search_team_failed": (SEARCH, {"limit": 100, "tag": "team=t9", "status": "failed"}),
        "search_nothing": (SEARCH, {"limit": 100, "status": "queued", "auth_method": "key-1"}),
        "search_first_day": (SEARCH, {"limit": 100, "end": iso(START + 86400)}),
        "search_with_payloads": (SEARCH, {"limit": 100, "expand": "payloads"}),
        "history_first_page": (SEARCH, {"limit": 25, "expand": "payloads"}),
        "history_deep_page": (SEARCH, {"limit": 25, "expand": "payloads", "cursor": requests // 2}),
        "history_common_word": (SEARCH, {"limit": 25, "expand": "payloads", "q": "circle"}),
        "history_rare_words": (SEARCH, {"limit": 25, "expand": "payloads", "q": "red shelf 77"}),
    }


async def measure(store: SqliteStore, objects: FolderObjects, requests: int, repeat: int) -> dict[str, Any]:
    """Median, least, and processor time of every question."""
    pages = FastAPI()
    jobs = JobService(store, LiveJobs(), 1, lambda: None, lambda job_id: None, lambda: None, sign=str)
    pages.include_router(accounts_router(jobs, Prices(), objects))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await pages({**scope, "caller": ANYBODY}, receive, send)

    figures = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        for name, (path, query) in questions(requests).items():
            taken, worked = [], []
            for _ in range(repeat):
                began, began_cpu = time.perf_counter(), time.process_time()
                answer = await client.get(path, params=query)
                taken.append((time.perf_counter() - began) * 1e3)
                worked.append((time.process_time() - began_cpu) * 1e3)
                answer.raise_for_status()
            summary = {"p50_ms": statistics.median(taken), "min_ms": min(taken), "cpu_ms": statistics.median(worked)}
            figures[name] = {part: round(value, 1) for part, value in summary.items()}
    return figures


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = fill(Path(folder), asked.requests)
        filled_s = round(time.perf_counter() - began, 1)
        megabytes = round((Path(folder) / "jobs.db").stat().st_size / 1e6)
        figures = asyncio.run(measure(store, FolderObjects(Path(folder) / "files"), asked.requests, asked.repeat))
        store.close()
    print(json.dumps({"requests": asked.requests, "filled_s": filled_s, "mb": megabytes, **figures, **stamp()}))


if __name__ == "__main__":
    main()
