"""A server whose worker follows a script: the prompt decides what happens, and gates when.

Prompts (see tests/server/scripted_worker.py): any text is drawn at once; `wait NAME` starts and goes on when the gate
NAME is opened; `hold NAME` is taken but not even started until then; "crash", "oom", "model error" and so on fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.jobs.dispatcher import AHEAD
from tests.acceptance.serving import Server
from tests.conformance.recording import Record
from tests.server.api_server import eventually

DEV = "fal-ai/flux/dev"
TINY = {"image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}
"""Beside a prompt: a picture that costs nothing."""
WITHIN_S = 60.0

_names = itertools.count(1)


@dataclass(frozen=True)
class Scripted:
    """A running server, its gates and its record."""

    server: Server
    gates: Path
    record_file: Path

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def tls_url(self) -> str:
        return self.server.tls_url

    def new_gate(self) -> str:
        """A name for a gate that is closed."""
        return f"gate{next(_names)}"

    def open(self, gate: str) -> None:
        """Let everything that waits for this gate go on."""
        (self.gates / gate).touch()

    def open_all(self) -> None:
        """Let everything go on whose gate was ever named, so that nothing of one test is left for the next."""
        for number in range(1, next(_names)):
            self.open(f"gate{number}")

    def record(self) -> Record:
        """What reaches the server from here on."""
        return Record(self.record_file)

    def submit(self, prompt: str, endpoint: str = DEV, headers: dict[str, str] | None = None, **input_: Any) -> str:
        """Queue a tiny picture, raw; the request's id."""
        body = {"prompt": prompt, **TINY, **input_}
        answer = httpx.post(f"{self.url}/queue/{endpoint}", json=body, headers=headers, timeout=60, verify=False)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    def status(self, request_id: str, endpoint: str = "fal-ai/flux", logs: bool = True) -> dict[str, Any]:
        """The status object, raw."""
        address = f"{self.url}/queue/{endpoint}/requests/{request_id}/status"
        answer = httpx.get(address, params={"logs": int(logs)}, timeout=60, verify=False)
        assert answer.status_code in (200, 202), answer.text
        body: dict[str, Any] = answer.json()
        return body

    def result(self, request_id: str, endpoint: str = "fal-ai/flux") -> httpx.Response:
        """The result's answer, raw."""
        return httpx.get(f"{self.url}/queue/{endpoint}/requests/{request_id}", timeout=60, verify=False)

    def block(self) -> str:
        """Fill the worker, so that whatever is submitted from here on waits; returns the gate that ends it."""
        gate = self.new_gate()
        blockers = [self.submit(f"hold {gate}") for _ in range(AHEAD)]
        for blocker in blockers:
            self.until_status(blocker, "IN_PROGRESS")
        return gate

    def until_status(self, request_id: str, status: str) -> dict[str, Any]:
        """Wait until the request is in this state; its status object."""
        seen: list[dict[str, Any]] = []

        def is_there() -> bool:
            seen.append(self.status(request_id))
            return bool(seen[-1]["status"] == status)

        eventually(is_there, within_s=WITHIN_S)
        return seen[-1]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something is true."""
        eventually(holds, within_s=WITHIN_S)

    def jobs(self) -> int:
        """Requests that the store holds, in any state."""
        return self._metric("fluxserve_jobs{")

    def ends(self, status: str) -> int:
        """Requests that the store holds in one of its own states: queued, running, completed, failed, cancelled."""
        return self._metric(f'fluxserve_jobs{{status="{status}"}}')

    def running(self) -> int:
        """Requests that a worker has begun and not ended, as the workers say."""
        return self._metric("fluxserve_worker_running{")

    def _metric(self, begin: str) -> int:
        lines = httpx.get(f"{self.url}/metrics", timeout=60, verify=False).text.splitlines()
        return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begin)))
