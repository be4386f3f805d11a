"""What the doctor says of a Ray cluster; what Ray itself answers is tried in tests/server/workers/cluster."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from server.cli import cluster_checkup
from server.cli.cluster_checkup import shared_workers
from server.cli.finding import Finding
from server.settings import VERSION, Settings
from server.workers.cluster.connection import sentence
from tests.ports import free_port

FINE = {"host": "gpu-1", "version": VERSION, "ahead_s": 0.1, "unreached": None}


def machine(cpus: float = 8, gpus: int = 0, **answer: Any) -> dict[str, Any]:
    return {"address": "10.0.0.2", "cpus": cpus, "gpus": gpus, "answer": FINE | answer}


def looked(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], **more: Any) -> dict[str, Finding]:
    """What is said of this, as if Ray had answered it."""
    monkeypatch.setattr(cluster_checkup, "unusable", lambda _: None)
    monkeypatch.setattr(cluster_checkup, "_unreached", lambda _: None)
    monkeypatch.setattr(cluster_checkup, "_look", lambda *_: {"ray": "2.60.0", "at": "10.0.0.1:4711"} | found)
    settings = Settings(**{"cluster": "ray://10.0.0.1:10001", **more})
    return {finding.subject: finding for finding in shared_workers(settings)}


def test_without_a_cluster_there_is_nothing_to_find() -> None:
    assert shared_workers(Settings()) == []


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_a_missing_package_is_named() -> None:
    (finding,) = shared_workers(Settings(cluster="auto"))
    assert (finding.verdict, "pip install -r requirements-ray.lock" in finding.detail) == ("broken", True)


def test_a_head_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_checkup, "unusable", lambda _: None)
    address = f"ray://127.0.0.1:{free_port()}"
    (finding,) = shared_workers(Settings(cluster=address))
    assert (finding.verdict, finding.detail) == ("broken", f"{address} cannot be reached: Connection refused")
    assert "ray:// goes to 10001, not to 6379" in finding.advice


def test_a_sound_cluster_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"machines": [machine(0), machine(8, 1), machine(8, 1)], "cpus": 16, "gpus": 2}
    found = looked(monkeypatch, there, workers="1-4")
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "3 machines, 2 GPUs (2 free), 16 CPUs (16 free)" in found["cluster"].detail
    assert found["places"].detail == "2 workers of 1 GPU and 1 CPU would find a place"
    assert found["machines"].detail == f"all have fluxserve {VERSION} and reach this one at 10.0.0.1:4711"


@pytest.mark.parametrize(
    ("there", "settings", "said"),
    [
        (
            [machine(8, 0)],
            {"device": "cuda"},
            "0 workers of 1 GPU and 1 CPU would find a place, --workers 1 asks for 1",
        ),
        (
            [machine(8, 1)],
            {"workers": "2-4"},
            "1 worker of 1 GPU and 1 CPU would find a place, --workers 2-4 asks for 2",
        ),
        ([machine(2)], {"worker_cpus": 4}, "0 workers of 4 CPU would find a place"),
    ],
)
def test_workers_without_a_place_are_told(
    monkeypatch: pytest.MonkeyPatch, there: list[dict[str, Any]], settings: dict[str, Any], said: str
) -> None:
    found = looked(monkeypatch, {"machines": there, "cpus": 8, "gpus": 1}, **settings)
    assert found["places"].verdict == "warning"
    assert said in found["places"].detail


def test_places_that_are_taken_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked(monkeypatch, {"machines": [machine(8, 1)], "cpus": 7, "gpus": 0})
    assert "every place for 1 GPU and 1 CPU is taken now" in found["places"].detail


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        ({"version": "0.0.9"}, "broken", f"gpu-1 (10.0.0.2) has fluxserve 0.0.9, this machine {VERSION}"),
        ({"unreached": "timed out"}, "broken", "does not reach this machine at 10.0.0.1:4711: timed out"),
        ({"ahead_s": -4000.0}, "warning", "the clock of gpu-1 (10.0.0.2) is 4000 s behind"),
        ({"failed": "ModuleNotFoundError: No module named 'server'"}, "broken", "No module named 'server'"),
    ],
)
def test_a_machine_that_would_start_no_worker_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], verdict: str, said: str
) -> None:
    finding = looked(monkeypatch, {"machines": [machine(), machine(**answer)], "cpus": 16, "gpus": 0})["machine"]
    assert (finding.verdict, said in finding.detail) == (verdict, True), finding
    assert finding.advice


def test_other_versions_are_told_whole() -> None:
    lines = (
        "Version mismatch: The cluster was started with:",
        "Ray: 2.9.0",
        "This process was started with:",
        "Ray: 2.60.0",
    )
    assert sentence(RuntimeError("\n    ".join(["Traceback", *lines]))) == " ".join(lines)
    assert sentence(ValueError("first\n  last\n")) == "last"
    assert sentence(ValueError()) == "ValueError"


def test_other_versions_come_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = looked(monkeypatch, {"failed": "Version mismatch: The cluster was started with: Ray: 2.9.0"}).values()
    assert (finding.verdict, "the same versions of Ray and Python" in finding.advice) == ("broken", True)
