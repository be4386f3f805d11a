"""Threads that run from the start, under a real limit of this user's processes and threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from server.workers.threads import started

# A user who runs nothing else, where we may become one; else ourselves, who have used up one process already.
LIMITED = """
import os, resource, threading
from server.workers.threads import TooFewThreadsError, started

resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
if os.getuid() == 0:
    os.setuid(65534)
before = threading.active_count()
try:
    started(32, "request")
except TooFewThreadsError as exc:
    print(exc)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(20)
print(threading.active_count() == before)
"""


def test_all_threads_run_before_the_first_call() -> None:
    def running() -> int:
        return sum(thread.name.startswith("early") for thread in threading.enumerate())

    executor = started(5, "early")
    assert running() == 5
    assert executor.submit(lambda: 7).result(20) == 7
    assert running() == 5
    executor.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="limits threads as Linux does")
def test_a_limit_of_processes_is_met_at_the_start_and_explained() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60)
    said, is_tidy = done.stdout.splitlines()
    assert "threads may be started" in said
    assert "ulimit -u" in said
    assert is_tidy == "True"
