"""Official clients under a watch that writes down every name they resolve and every address they call."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.child import HERE, JS, Child

WATCHING = HERE / "watching"


@dataclass(frozen=True)
class Watched:
    """A client and what its watch has seen. Calling it runs a piece of code, as `Child` does."""

    child: Child
    file: Path

    def __call__(self, code: str, **names: Any) -> Any:
        return self.child(code, **names)

    def seen(self) -> list[dict[str, Any]]:
        """Every resolution, connection and subprocess so far, in order: `event`, `target`, `passes`."""
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def escapes(self) -> list[str]:
        """Targets beyond loopback that were asked for, and refused."""
        return [entry["target"] for entry in self.seen() if not entry["passes"]]


@contextmanager
def watched_python(folder: Path, setup: Mapping[str, str], **beneath: str) -> Iterator[Watched]:
    """`fal_client`, set up by what `fluxserve env` prints over the environment `beneath`."""
    file = folder / "python.watch"
    watch = {"PYTHONPATH": str(WATCHING), "WATCH_FILE": str(file)}
    yield from _watched([sys.executable, str(HERE / "python_child.py")], {**beneath, **setup, **watch}, file)


@contextmanager
def watched_js(folder: Path, setup: Mapping[str, Any]) -> Iterator[Watched]:
    """`@fal-ai/client` in Node, with `setup` as fal.config's argument."""
    file = folder / "node.watch"
    watch = {"NODE_OPTIONS": f"--import={(WATCHING / 'watch.mjs').as_uri()}", "WATCH_FILE": str(file)}
    yield from _watched(["node", str(JS / "child.mjs")], {"FAL_CONFIG": json.dumps(setup), **watch}, file)


def _watched(command: list[str], environment: dict[str, str], file: Path) -> Iterator[Watched]:
    child = Child(command, environment)
    try:
        yield Watched(child, file)
    finally:
        child.kill()
