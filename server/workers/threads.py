"""Executors whose threads run from the start: a limit of processes and threads is met then, and not by a request."""

from __future__ import annotations

import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

from models.control_groups import startable

NEEDED = 100 + 2 * (os.cpu_count() or 1)
"""Threads and processes of one server: its own, two encoders' and a worker's, and room to start one anew."""
ADVICE = "raise systemd's TasksMax, --pids-limit of the container, podPidsLimit of Kubernetes, or ulimit -u"


class TooFewThreadsError(Exception):
    """The system refuses another thread; the message says what limits them."""


def started(threads: int, name: str) -> ThreadPoolExecutor:
    """An executor that never has to start a thread later: one that is refused is refused after its work stands in
    line, so that a submit would be answered 500 and drawn all the same.

    Raises: TooFewThreadsError."""
    executor, go = ThreadPoolExecutor(threads, name), threading.Event()
    try:
        for _ in range(threads):
            executor.submit(go.wait)
    except RuntimeError as exc:
        executor.shutdown(wait=False, cancel_futures=True)
        raise TooFewThreadsError(f"{_what_limits()}, and a server needs about {NEEDED}; {ADVICE}") from exc
    finally:
        go.set()
    return executor


def _what_limits() -> str:
    free = startable()
    if free is not None and free < NEEDED:
        return f"only {free} more processes and threads may be started here, the limit of a container or service"
    return f"no more threads may be started: this user may have {resource.getrlimit(resource.RLIMIT_NPROC)[0]}"
