"""A server that kills itself as soon as it comes to a named point.

    python -m benchmarks.dying_server POINT DATA_DIR ...

The other arguments are those of `benchmarks.load_server`.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import load_server
from server.files.outputs import Outputs
from server.jobs.live import LiveJobs
from server.jobs.store import outbox, transitions
from server.jobs.store.sqlite import SqliteStore

BEFORE: dict[str, tuple[Any, str]] = {
    "before a submit is stored": (SqliteStore, "enqueue"),
    "in the middle of the steps": (LiveJobs, "step"),
    "while what was left is taken up": (transitions, "node_died"),
    "before an end is stored": (SqliteStore, "finish"),
    "between a webhook and its record": (SqliteStore, "settle_webhook"),
}
AFTER: dict[str, tuple[Any, str]] = {
    "after a submit is stored": (SqliteStore, "enqueue"),
    "after a claim": (SqliteStore, "claim"),
    "after what was left is taken up": (SqliteStore, "recover"),
    "after a picture is stored": (Outputs, "deliver"),
    "inside the transaction of an end": (outbox, "enqueue"),
    "after an end is stored": (SqliteStore, "finish"),
}
POINTS = (
    "before a submit is stored",
    "after a submit is stored",
    "after a claim",
    "in the middle of the steps",
    "while what was left is taken up",
    "in the middle of the steps",
    "after what was left is taken up",
    "after a picture is stored",
    "before an end is stored",
    "inside the transaction of an end",
    "after an end is stored",
    "between a webhook and its record",
)
"""In the order in which a request comes by; what is taken up was left by the point before."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(call: Callable[..., Any]) -> Callable[..., Any]:
    def dies(*arguments: Any, **named: Any) -> Any:
        die()

    return dies


def dying_after(call: Callable[..., Any]) -> Callable[..., Any]:
    """A claim of nothing is no claim."""

    def dies(*arguments: Any, **named: Any) -> Any:
        result = call(*arguments, **named)
        if result != []:
            die()
        return result

    async def dies_later(*arguments: Any, **named: Any) -> Any:
        await call(*arguments, **named)
        die()

    return dies_later if inspect.iscoroutinefunction(call) else dies


def main() -> None:
    point = sys.argv.pop(1)
    for table, dying in ((BEFORE, dying_before), (AFTER, dying_after)):
        if point in table:
            owner, name = table[point]
            setattr(owner, name, dying(getattr(owner, name)))
    load_server.main()


if __name__ == "__main__":
    main()
