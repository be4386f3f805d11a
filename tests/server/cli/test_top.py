"""`fluxserve top`: rates between two looks, once for programs and people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from server.cli.top import Look, view
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

WORKER: dict[str, Any] = {
    "device": "cuda:0", "state": "ready", "loaded": ["FLUX.1-dev"], "running": 2, "waiting": 1, "load_ms": 1500.0,
    "memory": {"used": 5, "total": 80}, "restarts": 1, "last_error": None, "steps": 30,
}  # fmt: skip
HEALTH: dict[str, Any] = {
    "state": "ready", "ready": True, "problems": [], "queue": {"queued": 3, "running": 2}, "workers": [WORKER],
}  # fmt: skip


def look(at: float, steps: float, images: float) -> Look:
    samples = {
        "fluxserve_worker_steps_total": [({"device": "cuda:0"}, steps)],
        "fluxserve_images_total": [({"endpoint": "a"}, images), ({"endpoint": "b"}, images)],
        "fluxserve_gpu_power_watts": [({"device": "cuda:0"}, 312.4), ({"device": "cuda:1"}, 90.0)],
        "fluxserve_queue_oldest_seconds": [({}, 4.25)],
    }
    return Look(at, HEALTH, samples)


def test_rates_are_what_happened_between_two_looks() -> None:
    shown = view(look(10.0, 100, 1), look(12.0, 160, 2))
    (worker,) = shown["workers"]
    assert (worker["steps_per_s"], shown["rates"]["images_per_s"]) == (30.0, 1.0)
    assert (worker["gpu"], shown["queue"]["oldest_s"]) == ({"power_watts": 312.4}, 4.2)
    restarted = view(look(10.0, 100, 1), look(11.0, 7, 1))
    assert restarted["workers"][0]["steps_per_s"] == 7.0


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serve(ApiNode(tmp_path)) as served:
        monkeypatch.setattr(served.node, "health", lambda: HEALTH)
        yield served


def test_programs_get_one_object_and_people_a_table(api: Api) -> None:
    api.submit()
    asked = ["top", "--url", api.url, "--every", "0.2"]
    shown = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert (shown["state"], shown["workers"][0]["load_s"], shown["queue"]["queued"]) == ("ready", 1.5, 3)
    text = CliRunner().invoke(app, [*asked, "--once"], env={"COLUMNS": "200"}).output
    assert "waiting 3" in text
    assert "FLUX.1-dev" in text
    blind = CliRunner().invoke(app, asked)
    assert "give --once or --json" in str(blind.exception)
