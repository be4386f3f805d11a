"""A real `fluxserve serve` in its own process, on free ports, with its own data folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COMMAND = (str(Path(sys.executable).with_name("fluxserve")),)
MODEL = os.environ.get("FLUXSERVE_TEST_MODEL", "flux-shapes")
START_S = 100.0
STOP_S = 30.0


@dataclass
class Server:
    """One serving process; `start` again after a stop or a kill keeps its ports and its data folder.

    Args: command: what stands for `fluxserve`. folder: where it runs.
    """

    data_dir: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    model: str = MODEL
    command: tuple[str, ...] = COMMAND
    folder: Path = ROOT
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    _setups: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def output(self) -> str:
        """What the process has printed so far, since its first start."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.data_dir / "output.log"

    def start(self) -> Server:
        """Start the process; returns at once."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        ports = ["--port", str(self.port), "--tls-port", str(self.tls_port)]
        command = [
            *self.command,
            "serve",
            *ports,
            "--data-dir",
            str(self.data_dir),
            "--model",
            self.model,
            *self.arguments,
        ]
        self.started_at = time.monotonic()
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=clean_environment() | self.environment,
                cwd=self.folder,
            )
        return self

    def wait_live(self) -> float:
        """Wait for /livez; returns the seconds since the start."""
        self._until(lambda: self._answers("/livez"))
        return time.monotonic() - self.started_at

    def wait_ready(self) -> float:
        """Wait for /readyz; returns the seconds since the start."""
        self._until(lambda: self._answers("/readyz"))
        return time.monotonic() - self.started_at

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=5, verify=False).json()
        return answer

    def worker_pids(self) -> list[int]:
        """Process ids of the loaded workers, as /health tells them."""
        return [worker["pid"] for worker in self.health()["workers"] if worker["pid"]]

    def setup(self, client: str) -> dict[str, Any]:
        """What `fluxserve env` prints for one client, as data; asked once."""
        if client in self._setups:
            return self._setups[client]
        command = [*COMMAND, "env", "--client", client, "--json", "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=START_S, env=clean_environment() | self.environment
        )
        assert done.returncode == 0, done.stderr
        self._setups[client] = json.loads(done.stdout)
        return self._setups[client]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the process to end and wait; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def kill_everything(self) -> None:
        """kill -9 of the node and all its children, at once."""
        assert self.process is not None
        node = psutil.Process(self.process.pid)
        for victim in [node, *node.children(recursive=True)]:
            victim.kill()
        self.process.wait(STOP_S)

    def close(self) -> None:
        """End the process whatever its state."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill_everything()

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(f"{self.url}{path}", timeout=2, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not holds():
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"not up within {START_S} s:\n{self.output}"
            time.sleep(0.02)


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that points a client or a server somewhere."""
    dropped = ("FAL_", "FLUXSERVE_", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
