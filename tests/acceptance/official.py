"""The official fal clients, unmodified, each in a process of its own that only `fluxserve env` points somewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.serving import Server, clean_environment

HERE = Path(__file__).parent
TIMEOUT_S = 90


@dataclass(frozen=True)
class Trace:
    """What one scenario printed, in order."""

    events: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The endpoint's answer. Fails the test if there was none."""
        result: dict[str, Any] = self._last("result")["result"]
        return result

    @property
    def error(self) -> dict[str, Any]:
        """What the client raised. Fails the test if it raised nothing."""
        return self._last("error")

    @property
    def request_id(self) -> str:
        return str(self._last("enqueued")["request_id"])

    @property
    def statuses(self) -> list[str]:
        """The states that were seen, without repeats."""
        seen = [event["status"] for event in self.events if event["event"] == "update"]
        return [status for k, status in enumerate(seen) if k == 0 or status != seen[k - 1]]

    def logs(self, until: str | None = None) -> list[str]:
        """The log as the last update showed it, or the last one before the event `until`."""
        shown: list[str] = []
        for event in self.events:
            if event["event"] == until:
                break
            shown = event.get("logs") or shown
        return shown

    def time_of(self, event: str) -> float:
        """Unix seconds of the last event of a kind."""
        return float(self._last(event)["at"])

    def _last(self, event: str) -> dict[str, Any]:
        found = [entry for entry in self.events if entry["event"] == event]
        assert found, f"no {event!r} among {[entry['event'] for entry in self.events]}; last: {self.events[-1:]}"
        return found[-1]


@dataclass(frozen=True)
class Client:
    """One official client. `setup_name` is what `fluxserve env --client` calls it."""

    name: str
    setup_name: str
    command: tuple[str, ...]

    def why_not(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.setup_name != "js":
            return None
        if shutil.which("node") is None:
            return "Node is not installed"
        if not (HERE / "js" / "node_modules").is_dir():
            return "the JavaScript client is not installed: make dev"
        return None

    def start(self, server: Server, scenario: str, endpoint: str, arguments: dict[str, Any]) -> subprocess.Popen[str]:
        """Begin one scenario, set up as `fluxserve env` says; collect it with `trace`."""
        return self.start_with(server.setup(self.setup_name), scenario, endpoint, arguments)

    def start_with(
        self, setup: dict[str, Any], scenario: str, endpoint: str, arguments: dict[str, Any]
    ) -> subprocess.Popen[str]:
        """Begin one scenario with a given setup: environment for Python, fal.config's argument for Node."""
        pointed = {"FAL_CONFIG": json.dumps(setup)} if self.setup_name == "js" else setup
        return subprocess.Popen(
            [*self.command, json.dumps([scenario, endpoint, arguments])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment() | pointed,
        )

    def __call__(self, server: Server, scenario: str, endpoint: str, **arguments: Any) -> Trace:
        """One scenario to its end."""
        return trace(self.start(server, scenario, endpoint, arguments))


def trace(process: subprocess.Popen[str]) -> Trace:
    """Wait for a client to end and read what it told. Fails the test if it crashed."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the client did not end within {TIMEOUT_S} s:\n...{out[-500:]}\n{err}") from None
    assert process.returncode == 0, f"{out}\n{err}"
    return Trace([json.loads(line) for line in out.splitlines()])


CLIENTS = {
    client.name: client
    for client in (
        Client("python", "python", (sys.executable, str(HERE / "clients" / "sync_client.py"))),
        Client("python-async", "python", (sys.executable, str(HERE / "clients" / "async_client.py"))),
        Client("node", "js", ("node", str(HERE / "js" / "client.mjs"))),
    )
}
