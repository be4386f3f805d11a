"""Nodes over one database and one folder of pictures, each a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server.api_server import eventually

SUBMIT = "/queue/fal-ai/flux/dev"
PATIENCE_S = 60.0
ENDED = ("completed", "failed", "cancelled")


@dataclass
class ClusterNode:
    """One node process and a client of it."""

    folder: Path
    process: subprocess.Popen[str]
    http: httpx.Client

    def submit(self, prompt: str = "a fox", headers: dict[str, str] | None = None, **body: Any) -> str:
        answer = self.http.post(SUBMIT, json={"prompt": prompt, "num_inference_steps": 3} | body, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """As the operator sees it."""
        return dict(self.http.get(f"/v1/jobs/{job_id}").json())

    def result(self, job_id: str) -> httpx.Response:
        return self.http.get(f"{SUBMIT.rpartition('/')[0]}/requests/{job_id}")

    def logs(self, job_id: str) -> list[str]:
        """As the official clients ask for them, once."""
        answer = self.http.get(f"{SUBMIT.rpartition('/')[0]}/requests/{job_id}/status", params={"logs": "1"})
        return [entry["message"] for entry in answer.json().get("logs") or ()]

    def name(self) -> str:
        return str(self.http.get("/health").json()["node"])

    def rest(self) -> None:
        """Have it take no jobs."""
        assert self.http.put(f"/v1/drains/{self.name()}").status_code == 200

    def work(self) -> None:
        """Have it take jobs again."""
        # A node that was frozen with the lock in its hands keeps everybody out until the database takes it back.
        eventually(lambda: self.http.delete(f"/v1/drains/{self.name()}").status_code == 200, within_s=PATIENCE_S)

    def until_ended(self, job_id: str) -> dict[str, Any]:
        eventually(lambda: self.job(job_id).get("status") in ENDED, within_s=PATIENCE_S)
        return self.job(job_id)

    def until_begun(self, job_id: str, on: ClusterNode | None = None) -> None:
        """Args: on: the node that must have begun it; any, if not given."""
        name = on.name() if on is not None else None

        def has_begun() -> bool:
            nodes = self.http.get("/v1/nodes").json()["nodes"]
            asked = [node for node in nodes if name in (None, node["name"])]
            held = [held for node in asked for worker in node["workers"] for held in worker["holds"]]
            return any(each["request_id"] == job_id and each["began_at"] is not None for each in held)

        eventually(has_begun, within_s=PATIENCE_S)

    def freeze(self) -> None:
        """The node alone: its workers go on."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """The node with its workers, as a machine that goes."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.close()


@dataclass
class Cluster:
    """Starts nodes, and ends them. Args: environment: of all of them."""

    folder: Path
    store: str
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[ClusterNode] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def gates(self) -> Path:
        """A file in here lets a request with its name go on."""
        return self.folder / "gates"

    def open(self, gate: str) -> None:
        (self.gates / gate).touch()

    def ended_runs(self) -> list[str]:
        """The requests that workers have drawn to their ends, each as often as that happened."""
        lines = (self.folder / "journal").read_text().splitlines()
        return [line.split()[2] for line in lines if line.startswith("ended ")]

    def start(self, environment: dict[str, str] | None = None, **settings: Any) -> ClusterNode:
        """A node, ready."""
        for name in ("gates", "files"):
            (self.folder / name).mkdir(exist_ok=True)
        folder = self.folder / f"node-{next(self._numbers)}"
        folder.mkdir(mode=0o700)
        (folder / "files").symlink_to(self.folder / "files")
        words = [f"{name}={json.dumps(value)}" for name, value in ({"store": self.store} | settings).items()]
        said = {"SCRIPTED_GATES": str(self.gates), "SCRIPTED_JOURNAL": str(self.folder / "journal")}
        environment = os.environ | said | self.environment | (environment or {})
        with (folder / "node.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.node", str(folder), *words],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, (folder / "node.log").read_text()[-4000:]
        # Not verifying: to read the public authorities takes most of a test's time, and this is plain HTTP.
        node = ClusterNode(folder, process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False))
        self.nodes.append(node)
        return node

    def close(self) -> None:
        for node in self.nodes:
            node.thaw()
            node.kill()
