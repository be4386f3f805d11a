"""A real Ray cluster whose machines are raylets on this one: `python -m benchmarks.ray_machines`.

Lines on stdin: `add CPUS`, `kill N` (a machine but the head; -9), `kill head`, `head CPUS` (another, at the same
address, that knows nothing of the earlier).
Every one is answered by one line; the first line out is the address. The end of stdin ends the cluster.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]


class RayMachines:
    """The cluster of such a program. Args: address, client: for a driver, and for `ray://`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address, self.client, _ = self._answer().split()

    def add(self, cpus: int) -> None:
        self._do(f"add {cpus}")

    def kill(self, machine: int | str) -> None:
        self._do(f"kill {machine}")

    def start_head(self, cpus: int) -> None:
        self._do(f"head {cpus}")

    def _do(self, what: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("now: "):
            assert line, "the cluster ended"
        return line.removeprefix("now: ")


@contextlib.contextmanager
def ray_machines(*cpus: int) -> Iterator[RayMachines]:
    """A head without CPUs, and one machine for each of these numbers of them."""
    # No usage reports, and a folder whose name is short enough for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environ = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_AUTH_MODE": "disabled"}
        environ["RAY_TMPDIR"] = folder
        Path(folder, "ray").mkdir()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.ray_machines"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            machines = RayMachines(process)
            for number in cpus:
                machines.add(number)
            yield machines
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def _say(line: str) -> None:
    print(f"now: {line}", flush=True)


def main() -> None:
    cluster_of = importlib.import_module("ray.cluster_utils").Cluster
    small: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}
    ports = {"gcs_server_port": free_port(), "ray_client_server_port": free_port()}
    cluster = cluster_of(initialize_head=True, head_node_args={"num_cpus": 0, **ports, **small})
    machines: list[Any] = []
    _say(f"{cluster.address} ray://127.0.0.1:{ports['ray_client_server_port']} ready")
    for line in sys.stdin:
        match line.split():
            case ["add", cpus]:
                machines.append(cluster.add_node(num_cpus=int(cpus), **small))
            case ["kill", "head"]:
                cluster.head_node.kill_gcs_server()
                cluster.head_node.kill_raylet()
            case ["kill", number]:
                machines[int(number)].kill_raylet()
            case ["head", cpus]:
                cluster = cluster_of(initialize_head=True, head_node_args={"num_cpus": int(cpus), **ports, **small})
        _say("done")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
