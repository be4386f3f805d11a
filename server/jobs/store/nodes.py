"""Who serves from a store: every node says again and again what it and its workers do, and hears what shall rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

SILENT_S = 10.0
"""A node that has not reported for so long is called silent: it is gone, or cut off from the store."""
KEPT_S = 3600.0
"""A silent node is shown for so long; then it is forgotten, with what was ordered of it."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself; all of it can be written as JSON.

    Args: name: of this life of the node; no later one has it. url: where it answers, as far as it knows.
        state: as /health says it. started_at: Unix seconds of the store's clock.
        callers: open connections that wait for a result. rest: how far it is, if it was told to rest as a whole.
        workers: each as `/v1/workers` shows it, with its `name`, which begins with the node's.
        models: names of what it serves, loaded or not yet.
        files: where it keeps pictures: a bucket's address, or `a folder`; nothing from a version that does not say.
    """

    name: str
    url: str | None
    version: str
    state: str
    started_at: float
    callers: int = 0
    rest: Literal["draining", "drained"] | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    files: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Its own and those of its workers: what may be told to rest."""
        return frozenset({self.name, *(worker["name"] for worker in self.workers)})


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as the store knows it. Args: seen_s: since its report. resting: of its names those told to rest."""

    report: NodeReport
    seen_s: float
    resting: frozenset[str] = frozenset()

    @property
    def is_silent(self) -> bool:
        return self.seen_s >= SILENT_S

    @property
    def brief(self) -> dict[str, Any]:
        """What /health says of it."""
        shown = ("name", "device", "state", "rest")
        return {
            "name": self.report.name,
            "url": self.report.url,
            "version": self.report.version,
            "files": self.report.files,
            "state": "silent" if self.is_silent else self.report.state,
            "seen_s": round(self.seen_s, 1),
            "workers": [
                {name: worker[name] for name in shown} | {"holds": len(worker["holds"])}
                for worker in self.report.workers
            ],
        }


def served_by(nodes: Iterable[SeenNode]) -> frozenset[str]:
    """Models that any of them serves and that has not fallen silent."""
    return frozenset(model for node in nodes if not node.is_silent for model in node.report.models)


class NodeBook:
    """The nodes of a store that lives in one process. Nothing of it need outlive that process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[NodeReport, float]] = {}
        self._resting: set[str] = set()

    def note(self, report: NodeReport) -> frozenset[str]:
        with self._lock:
            now = self._clock()
            self._seen[report.name] = (report, now)
            for name in [name for name, (_, seen_at) in self._seen.items() if seen_at < now - KEPT_S]:
                self._drop(name)
            return report.names & self._resting

    def forget(self, name: str) -> None:
        with self._lock:
            self._drop(name)

    def all(self) -> list[SeenNode]:
        with self._lock:
            now = self._clock()
            seen = sorted(self._seen.values(), key=lambda entry: entry[0].name)
            return [SeenNode(report, now - seen_at, report.names & self._resting) for report, seen_at in seen]

    def rest(self, name: str, is_wanted: bool) -> bool:
        with self._lock:
            is_known = any(name in report.names for report, _ in self._seen.values())
            if is_known and is_wanted:
                self._resting.add(name)
            else:
                self._resting.discard(name)
            return is_known

    def _drop(self, name: str) -> None:
        if (entry := self._seen.pop(name, None)) is not None:
            self._resting -= entry[0].names
