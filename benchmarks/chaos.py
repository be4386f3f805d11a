"""Requests through the HTTP API while workers, nodes, encode processes and everything are killed at random.

    python -m benchmarks.chaos [--requests 1000] [--kills 40] [--seed N]

Workers pretend to draw; all else is real: sockets, store, files, webhooks. Every request is submitted with a key of its
own until it is acknowledged, and is then left alone until all have ended. Prints one JSON line: `lost` (unknown, or
never ended), `doubled` (more rows than requests, or webhooks that tell of two ends), `torn` (a picture that is missing
or cannot be decoded), `failed` (ended without a picture), `wasted_percent` (runs begun beyond one a request),
`requeue_s` (from the kill of a worker to its requests waiting again). Exit status 1 if any was lost, doubled or torn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import apsw
import httpx
import psutil
from PIL import Image

from server.bench.stamp import stamp
from tests.server.receiver import Receiver, receiving

AT_ONCE = 16
"""Requests that are under way."""
STEPS, STEP_S = 6, 0.03
VICTIMS = {"worker": 10, "frozen worker": 3, "node": 4, "encoder": 2, "everything": 1}
PATIENCE_S = 100.0
SUBMIT = "/queue/fal-ai/flux/dev"


@dataclass
class Chaos:
    """One history over one folder. Args: total: requests. kills: spread over them."""

    folder: Path
    total: int
    kills: int
    dice: random.Random
    receiver: Receiver
    port: int = field(default_factory=lambda: _free_port())
    acknowledged: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    requeues_s: list[float] = field(default_factory=list)
    lives: int = 0
    is_over: bool = False
    frozen: list[psutil.Process] = field(default_factory=list)
    """Workers that were stopped: one whose node dies meanwhile cannot notice it, and would stay."""
    node: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Submit and kill until every request has ended."""
        keeper, client = threading.Thread(target=self._keep_alive), threading.Thread(target=self._submit_all)
        keeper.start()
        client.start()
        try:
            self._kill_all_along()
            client.join()
            self._until(lambda: self._unfinished() == 0)
            self._until(lambda: len(self._told()) >= self.total)
        finally:
            self.is_over = True
            keeper.join()
            for worker in self.frozen:
                with suppress(psutil.Error):
                    worker.kill()

    def report(self) -> dict[str, Any]:
        """What came of it, read through the API of a last life and in the folder."""
        ends = Counter(self._end_of(request_id) for request_id in self.acknowledged)
        began = Counter(line[2] for line in self._journal() if line[0] == "began")
        rows = next(self._query("SELECT count(*) FROM job"))[0]
        unlike = sum(len(bodies) > 1 for bodies in self._told().values())
        waits = sorted(self.requeues_s)
        return {
            "requests": self.total,
            "kills": dict(self.killed),
            "lives": self.lives,
            "lost": ends["lost"],
            "doubled": rows - self.total + unlike,
            "torn": ends["torn"],
            "failed": ends["failed"],
            "wasted_percent": round(100 * (sum(began.values()) - len(began)) / max(1, sum(began.values())), 1),
            "requeue_s": {"median": _at(waits, 0.5), "max": _at(waits, 1.0)},
        }

    def _keep_alive(self) -> None:
        """A node at all times, as systemd would see to; the last one ends with the history."""
        settings = ['models=["random:tiny"]', 'device="cpu,cpu"', "hang_s=4.0"]
        settings += [f"port={self.port}", 'allow_private_cidrs=["127.0.0.0/8"]']
        command = [sys.executable, "-m", "benchmarks.load_server", str(self.folder), *settings]
        environment = os.environ | {"SCRIPTED_STEP_S": str(STEP_S), "SCRIPTED_JOURNAL": str(self.folder / "journal")}
        while not self.is_over:
            self.lives += 1
            with (self.folder / "output.log").open("ab") as log:
                self.node = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            while self.node.poll() is None and not self.is_over:
                time.sleep(0.05)
        if self.node is not None:
            self.node.kill()
            self.node.wait()

    def _submit_all(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20) as http:
            for number in range(self.total):
                self._until(lambda: self._unfinished() < AT_ONCE)
                self._until(lambda number=number: self._submit(http, number))

    def _submit(self, http: httpx.Client, number: int) -> bool:
        body = {"prompt": f"request {number}", "num_inference_steps": STEPS, "image_size": {"width": 64, "height": 64}}
        headers = {"idempotency-key": f"request-{number}"}
        try:
            answer = http.post(SUBMIT, params={"fal_webhook": self.receiver.url}, json=body, headers=headers)
        except httpx.TransportError:
            return False
        if answer.status_code != 200:
            return False
        self.acknowledged.append(answer.json()["request_id"])
        return True

    def _kill_all_along(self) -> None:
        for number in range(1, self.kills + 1):
            due = number * self.total // (self.kills + 1)
            self._until(lambda due=due: len(self.acknowledged) >= due)
            time.sleep(self.dice.uniform(0.0, STEPS * STEP_S * 2))
            self._until(self._hurt)

    def _hurt(self) -> bool:
        """Kill something; False if it is not there now."""
        (what,) = self.dice.choices(list(VICTIMS), list(VICTIMS.values()))
        assert self.node is not None
        try:
            node = psutil.Process(self.node.pid)
            workers = [child for child in node.children() if "tests.server.scripted_worker" in child.cmdline()]
            encoders = [child for child in node.children() if "spawn_main" in " ".join(child.cmdline())]
            if what == "node":
                node.kill()
            elif what == "everything":
                for process in [*node.children(recursive=True), node]:
                    process.kill()
            elif what == "encoder":
                self.dice.choice(encoders).kill()
            else:
                self._hurt_worker(self.dice.choice(workers), is_frozen=what == "frozen worker")
        except (psutil.Error, IndexError):
            return False
        self.killed[what] += 1
        return True

    def _hurt_worker(self, worker: psutil.Process, is_frozen: bool) -> None:
        runs = self._runs_of(worker.pid)
        began = time.monotonic()
        worker.send_signal(signal.SIGSTOP if is_frozen else signal.SIGKILL)
        if is_frozen:
            self.frozen.append(worker)
        if is_frozen or not runs:
            return
        while time.monotonic() - began < 10.0:
            rows = {(row[0], row[1]) for row in self._query("SELECT id, epoch FROM job WHERE status = 'running'")}
            if not runs & rows:
                self.requeues_s.append(time.monotonic() - began)
                return
            time.sleep(0.005)
        self.requeues_s.append(10.0)

    def _runs_of(self, pid: int) -> set[tuple[str, int]]:
        """What this worker has begun and not ended."""
        runs: set[tuple[str, int]] = set()
        for what, who, request_id, epoch in self._journal():
            if int(who) == pid:
                (runs.add if what == "began" else runs.discard)((request_id, int(epoch)))
        return runs

    def _journal(self) -> list[list[str]]:
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if len(line.split()) == 4]

    def _unfinished(self) -> int:
        ended = {row[0] for row in self._query("SELECT id FROM job WHERE outcome IS NOT NULL")}
        return sum(request_id not in ended for request_id in self.acknowledged)

    def _query(self, query: str) -> Any:
        path = self.folder / "jobs.db"
        if not path.exists():
            return iter([])
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            return iter(connection.execute(query).fetchall())
        except apsw.SQLError:  # before the first life has made its tables
            return iter([])
        finally:
            connection.close()

    def _told(self) -> dict[str, set[str]]:
        """Everything that webhooks said of each request."""
        told: dict[str, set[str]] = {}
        for payload in self.receiver.payloads:
            told.setdefault(payload["request_id"], set()).add(json.dumps(payload, sort_keys=True))
        return told

    def _end_of(self, request_id: str) -> str:
        rows = list(self._query(f"SELECT status, outcome FROM job WHERE id = '{request_id}'"))
        if not rows or rows[0][1] is None:
            return "lost"
        if rows[0][0] != "completed":
            return "failed"
        (image,) = json.loads(rows[0][1])["body"]["images"]
        try:
            with Image.open(BytesIO((self.folder / "files" / image["file_name"]).read_bytes())) as picture:
                picture.load()
        except OSError:
            return "torn"
        return "whole"

    def _until(self, holds: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"stuck with {len(self.acknowledged)} acknowledged, {self._unfinished()} unfinished")
            time.sleep(0.01)


def chaos(total: int, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The report on one history."""
    with receiving() as receiver:
        history = Chaos(folder, total, kills, random.Random(seed), receiver)
        history.run()
        return {"benchmark": "chaos", "seed": seed} | history.report()


def is_whole(report: dict[str, Any]) -> bool:
    """Whether every promise was kept."""
    return not (report["lost"] or report["doubled"] or report["torn"])


def _at(values: list[float], share: float) -> float | None:
    return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        try:
            report = chaos(arguments.requests, arguments.kills, arguments.seed, Path(folder))
        except TimeoutError:
            with suppress(OSError):
                sys.stderr.write((Path(folder) / "output.log").read_text()[-4000:])
            raise
        report["seconds"] = round(time.monotonic() - began)
    print(json.dumps(report | {"stamp": stamp()}), flush=True)
    sys.exit(not is_whole(report))


if __name__ == "__main__":
    main()
