"""kill -9 and SIGSTOP at random, of workers and of the node: nothing acknowledged is lost, nothing ends twice."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from PIL import Image

from server.files.folder_objects import FolderObjects
from server.jobs.store.job import JobStatus
from server.jobs.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[3]
BREATHER_S = 5.0


@dataclass
class Chaos:
    """One history: lives of a node over one folder, and what it said in them."""

    folder: Path
    total: int
    dice: random.Random
    lines: list[list[str]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    lives: int = 0

    def said(self, what: str) -> list[str]:
        return [line[1] for line in self.lines if line[0] == what]

    def run(self) -> None:
        """Start the node again and again until one life ends by itself with everything done."""
        while not self.live():
            assert self.lives < 500

    def live(self) -> bool:
        self.lives += 1
        left = max(0, self.total - len(self.said("acknowledged")))
        command = [sys.executable, "-m", "tests.server.chaos_node", str(self.folder), str(self.lives), str(left)]
        errors = self.folder / "errors.log"
        with errors.open("a") as sink:
            node = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=sink, text=True)
        listener = threading.Thread(target=self.listen, args=(node,))
        listener.start()
        try:
            self.torment(node)
        finally:
            node.kill()
            node.wait()
            listener.join()
        assert node.returncode in (0, -signal.SIGKILL), errors.read_text()
        return node.returncode == 0

    def listen(self, node: subprocess.Popen[str]) -> None:
        assert node.stdout is not None
        with node.stdout as stream:
            for line in stream:
                if line.endswith("\n"):
                    self.lines.append(line.split())

    def torment(self, node: subprocess.Popen[str]) -> None:
        heard = len(self.lines)
        hurt_at = time.monotonic()
        while node.poll() is None:
            time.sleep(self.dice.uniform(0.05, 0.5))
            # On a slow machine let something happen between two blows, or nothing ever would.
            if len(self.lines) == heard and time.monotonic() - hurt_at < BREATHER_S:
                continue
            heard, hurt_at = len(self.lines), time.monotonic()
            with contextlib.suppress(psutil.Error):
                self.hurt(psutil.Process(node.pid))

    def hurt(self, node: psutil.Process) -> None:
        workers = [child for child in node.children() if "tests.server.scripted_worker" in child.cmdline()]
        if self.dice.random() < 0.15:
            self.kills["node"] += 1
            node.kill()
        elif workers and self.dice.random() < 0.2:
            self.kills["frozen worker"] += 1
            self.dice.choice(workers).suspend()
        elif workers:
            self.kills["worker"] += 1
            self.dice.choice(workers).kill()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("total", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_nothing_ends_twice(tmp_path: Path, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps slow enough that kills fall into most requests.
    monkeypatch.setenv("SCRIPTED_STEP_S", "0.05")
    seed = random.randrange(2**32)
    chaos = Chaos(tmp_path, total, random.Random(seed))
    chaos.run()

    acknowledged, ended = chaos.said("acknowledged"), chaos.said("ended")
    assert len(acknowledged) >= total
    assert len(set(ended)) == len(ended), f"ended twice (seed {seed})"
    store, objects = SqliteStore(tmp_path / "jobs.db"), FolderObjects(tmp_path / "files")
    statuses: Counter[JobStatus] = Counter()
    attempts = 0
    for job_id in acknowledged:
        job = store.get(job_id)
        assert job is not None, f"{job_id} is lost (seed {seed})"
        assert job.status.is_finished, f"{job_id} never ended (seed {seed})"
        statuses[job.status] += 1
        attempts += job.epoch
        assert job.outcome is not None
        for image in job.outcome.body.get("images", []):
            path = objects.path(image["file_name"])
            assert path is not None
            with Image.open(path) as picture:
                picture.load()
    store.close()
    # What fails here is what the poison rule gives up: alone with its worker at two deaths, or at three.
    print(f"\nseed {seed}: {dict(chaos.kills)} in {chaos.lives} lives, {dict(statuses)}, {attempts} attempts")
    assert set(statuses) <= {JobStatus.COMPLETED, JobStatus.FAILED}
    assert statuses[JobStatus.COMPLETED] > 0.8 * len(acknowledged)
    assert chaos.kills["worker"] > 0
