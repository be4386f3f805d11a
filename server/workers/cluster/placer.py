"""The only process that imports Ray: it places actors for the node and says how they end.

    python -m server.workers.cluster.placer --fd N --address ray://head:10001

A process of its own, because Ray ends its driver where a head or a local raylet is gone. Nothing that runs needs it:
workers speak to their node directly, so the node starts another and has new workers placed when Ray is back.
JSON lines on an inherited socket: `{"place": KEY, "task": {…}, "gpus": 1, "cpus": 1}` and `{"remove": KEY}` come in;
`{"connected": {"gpus": 8, "addresses": […]}}`, `{"failed": "why"}`, `{"refused": "why"}` and
`{"ended": KEY, "status": 3, "how": ""}` go out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from server.workers.cluster.actor import WorkerActor
from server.workers.cluster.connection import HeadRefusedError, connect, machines, sentence

PROBE_S = 5.0
SILENCE_S = 45.0
"""A head that answers nothing for so long is taken for gone."""


class Placer:
    """Speaks to the cluster. Args: ray: the module, connected. link: the node's socket."""

    def __init__(self, ray: Any, link: socket.socket) -> None:
        self._ray = ray
        self._link = link
        self._sending = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._heard_at = time.monotonic()

    def connected(self) -> None:
        """Tell the node what there is, and watch from now on whether it is still there."""
        there = machines(self._ray)
        gpus, addresses = sum(machine.gpus for machine in there), [machine.address for machine in there]
        self.send({"connected": {"gpus": gpus, "addresses": addresses}})
        threading.Thread(target=self._probe, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """To the node; from any thread."""
        with self._sending:
            self._link.sendall(json.dumps(message).encode() + b"\n")

    def take(self, message: dict[str, Any]) -> None:
        """Do what the node asks for."""
        if "place" in message:
            self._place(message["place"], message["task"], message["gpus"], message["cpus"])
        elif (actor := self._actors.pop(message["remove"], None)) is not None:
            self._ray.kill(actor)

    def remove_all(self) -> None:
        """The node is gone or going. What runs ends with its connection; what waits would have a machine started."""
        while self._actors:
            self._ray.kill(self._actors.popitem()[1])

    def _place(self, key: str, task: dict[str, Any], gpus: int, cpus: float) -> None:
        # Detached, because it is to outlive this process; it ends with its connection to the node. Ray starts it no
        # second time: the node decides when, and what was claimed by the first must be given up before.
        actor = (
            self._ray.remote(WorkerActor)
            .options(
                name=f"worker-{uuid.uuid4()}",
                lifetime="detached",
                max_restarts=0,
                num_gpus=gpus,
                num_cpus=cpus,
                scheduling_strategy="SPREAD",
            )
            .remote(task)
        )
        self._actors[key] = actor
        actor.outcome.remote().future().add_done_callback(lambda future: self._report(key, future))

    def _report(self, key: str, future: Any) -> None:
        status, how = None, ""
        if (error := future.exception()) is None:
            status, how = future.result()
        else:
            how = sentence(error)
        if (actor := self._actors.pop(key, None)) is not None and error is None:
            self._ray.kill(actor)
        self.send({"ended": key, "status": status, "how": how})

    def _probe(self) -> None:
        while True:
            try:
                self._ray.nodes()
            except Exception:
                os._exit(1)
            self._heard_at = time.monotonic()
            time.sleep(PROBE_S)

    def _watch(self) -> None:
        while time.monotonic() - self._heard_at < SILENCE_S:
            time.sleep(1.0)
        os._exit(1)


def main() -> int:
    """Until the node closes the socket. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.workers.cluster.placer")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the node")
    parser.add_argument("--address", required=True, help="what ray.init takes")
    arguments = parser.parse_args()
    link = socket.socket(fileno=arguments.fd)
    try:
        ray = connect(arguments.address)
        placer = Placer(ray, link)
        placer.connected()
    except HeadRefusedError as exc:
        link.sendall(json.dumps({"refused": str(exc)}).encode() + b"\n")
        return 1
    except Exception as exc:  # Ray raises many kinds; each means that there is no cluster to speak to
        link.sendall(json.dumps({"failed": sentence(exc)}).encode() + b"\n")
        return 1
    with link.makefile() as lines:
        for line in lines:
            placer.take(json.loads(line))
    placer.remove_all()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    finally:
        os._exit(status)  # Ray's threads may wait for a head that is gone
