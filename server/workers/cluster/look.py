"""A look at a cluster from outside: `python -m server.workers.cluster.look --address ray://head:10001`.

One JSON line: `{"ray": "2.60.0", "machines": [{"address": …, "cpus": 8, "gpus": 1, "answer": {…}}, …], "cpus": 7.0,
"gpus": 1}`, the last two of what is free now; or `{"failed": "why"}`. Every machine is asked by a task that takes no
CPU: which fluxserve is there, what time it is, and whether it reaches the address where workers would connect.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from server.workers.cluster.connection import Machine, address_towards, connect, machines, sentence

ANSWER_S = 25.0
GOODBYE_S = 3.0
MOST = 64
"""Machines that are asked; of a larger cluster those that Ray names first."""


def look(ray: Any, host: str | None, port: int) -> dict[str, Any]:
    """Args: ray: connected. host, port: where workers would connect; None and 0 as for a node."""
    there = machines(ray)
    ours = host or address_towards([machine.address for machine in there])
    with _listening(ours, port) as open_port:
        answers = _ask(ray, there[:MOST], ours, open_port)
    free = ray.available_resources()
    found = [asdict(machine) | {"answer": answers.get(machine.id)} for machine in there]
    at = f"{ours}:{open_port}"
    return {"ray": ray.__version__, "machines": found, "cpus": free.get("CPU", 0), "gpus": free.get("GPU", 0), "at": at}


def _ask(ray: Any, there: Sequence[Machine], host: str, port: int) -> dict[str, dict[str, Any]]:
    """Answers by the machine's id; what has none in time is left out."""
    strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    task = ray.remote(_tell)
    asked = {
        machine.id: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=strategy(machine.id, soft=False)
        ).remote(host, port)
        for machine in there
    }
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    return {machine: _answer(ray, reference) for machine, reference in asked.items() if reference in done}


def _answer(ray: Any, reference: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ray.get(reference)
    except Exception as exc:  # what fails there is what is looked for
        return {"failed": sentence(exc)}
    return answer | {"ahead_s": answer["time"] - time.time()}


def _tell(host: str, port: int) -> dict[str, Any]:
    """Runs on a machine of the cluster, and is sent there whole: nothing of ours may be installed."""
    import socket
    import time

    from server.settings import VERSION

    try:
        socket.create_connection((host, port), 5.0).close()
        unreached = None
    except OSError as exc:
        unreached = exc.strerror or str(exc)
    return {"host": socket.gethostname(), "version": VERSION, "time": time.time(), "unreached": unreached}


@contextmanager
def _listening(host: str, port: int) -> Iterator[int]:
    """The port, on which somebody listens: this process, or the node that runs here."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        yield port
        return
    with listener:
        yield listener.getsockname()[1]


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(prog="python -m server.workers.cluster.look")
    parser.add_argument("--address", required=True, help="what ray.init takes")
    parser.add_argument("--host", help="where workers would connect")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    try:
        found = look(connect(arguments.address), arguments.host, arguments.port)
    except Exception as exc:  # Ray raises many kinds; each means that there is no cluster to speak to
        found = {"failed": sentence(exc)}
    print(json.dumps(found), flush=True)
    _say_goodbye()


def _say_goodbye() -> None:
    """Else the head holds what a client leaves for half a minute. Not waited for: it may be gone."""
    if (ray := sys.modules.get("ray")) is not None:
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(GOODBYE_S)


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # Ray's threads may wait for a head that is gone
