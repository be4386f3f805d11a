"""SIGTERM under load, with real processes: streams end first, what runs ends or is handed back, nothing fails."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import httpx

from server.jobs.store.job import JobStatus
from server.jobs.store.sqlite import SqliteStore
from tests.conformance.conftest import serve
from tests.conformance.scripted import DEV, TINY
from tests.server.api_server import eventually

QUEUE = f"/queue/{DEV}"
REQUESTS = "/queue/fal-ai/flux/requests"


def test_a_restart_under_load_costs_no_request_and_no_attempt(tmp_path: Path) -> None:
    scripted = serve(tmp_path)
    server = scripted.server
    try:
        server.wait_ready()
        gate = scripted.new_gate()
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:

            def submit(prompt: str) -> str:
                answer = http.post(QUEUE, json={"prompt": prompt, **TINY}).raise_for_status()
                return str(answer.json()["request_id"])

            running = [submit(f"wait {gate}") for _ in range(3)]
            eventually(lambda: server.health()["queue"]["running"] == 3, within_s=30)
            waiting = [submit(f"hold {gate}") for _ in range(8)]
            ends: list[str] = []
            stream = threading.Thread(target=_watch, args=(http, running[0], ends))
            stream.start()
            eventually(lambda: ends, within_s=30)
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            stream.join(30)
            assert ends[-1] == "closed"
            assert server.process.poll() is None, "streams end before what runs is handed back"
            assert server.process.wait(60) == 0
        assert _attempts(tmp_path, [*running, *waiting]) == {(JobStatus.QUEUED, 0, 0)}
        scripted.open(gate)
        server.start().wait_ready()
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            for request_id in [*running, *waiting]:
                eventually(lambda request_id=request_id: _has_ended(http, request_id), within_s=60)  # type: ignore[misc]
                assert http.get(f"{REQUESTS}/{request_id}").status_code == 200
        assert server.stop() == 0
        assert _attempts(tmp_path, [*running, *waiting]) == {(JobStatus.COMPLETED, 1, 0)}
    finally:
        server.close()


def _watch(http: httpx.Client, request_id: str, ends: list[str]) -> None:
    with http.stream("GET", f"{REQUESTS}/{request_id}/status/stream") as events:
        for line in events.iter_lines():
            if line:
                ends.append(line)
    ends.append("closed")


def _has_ended(http: httpx.Client, request_id: str) -> bool:
    return bool(http.get(f"{REQUESTS}/{request_id}/status").json()["status"] == "COMPLETED")


def _attempts(folder: Path, ids: list[str]) -> set[tuple[JobStatus, int, int]]:
    store = SqliteStore(folder / "data" / "jobs.db")
    jobs = [store.get(request_id) for request_id in ids]
    store.close()
    return {(job.status, job.attempt, job.deaths) for job in jobs if job is not None}
