"""Runs tests in a copy of the checkout, each time in a fork of this process, which has the libraries loaded already."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
OURS = ("server", "pipelines", "models", "benchmarks", "tests")
OPTIONS = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:schemathesis",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
LEFT_OUT = shutil.ignore_patterns(".venv*", ".git", "node_modules", "data", ".*_cache", "__pycache__", "results")


@dataclass(frozen=True)
class Verdict:
    """How a run of tests ended: the first test that failed, if any, how long each that ran took, in seconds, and what
    it imported that is not ours."""

    failed: str | None
    took: dict[str, float]
    libraries: tuple[str, ...] = ()
    timed_out: bool = False

    @property
    def passed(self) -> bool:
        return self.failed is None and not self.timed_out


class Checkout:
    """A copy of the working tree in `folder`, whose files may be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self._said, self._output = folder / "said", folder / "output"
        self._changes = 0
        shutil.copytree(ROOT, self.folder, ignore=LEFT_OUT)

    def read(self, file: str) -> str:
        """The text of a file; the working tree may have changed since the copy was made."""
        return (self.folder / file).read_text()

    def write(self, file: str, text: str) -> None:
        """Changes a file; compiled forms of it are told apart by its time, which no two changes share."""
        path = self.folder / file
        path.write_text(text)
        self._changes += 1
        stamp = time.time() - 10_000_000 + self._changes
        os.utime(path, (stamp, stamp))

    def test(self, tests: Sequence[str], patience_s: float, order: dict[str, float] | None = None) -> Verdict:
        """Runs tests up to the first failure, quick ones first by `order`; gives up after `patience_s`."""
        self._said.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._be_the_tests(tests, order or {})
        done = _wait(child, time.monotonic() + patience_s)
        if not done:
            return Verdict(None, {}, timed_out=True)
        try:
            said = json.loads(self._said.read_text())
        except (OSError, ValueError):
            return Verdict(f"the tests' process died: {self._output.read_text(errors='replace')[-500:]}", {})
        return Verdict(said["failed"], said["took"], tuple(said["libraries"]))

    @staticmethod
    def load(libraries: Iterable[str]) -> None:
        """Import here what the tests import, so that the next forks have it."""
        for name in libraries:
            # Some refuse to be imported by themselves: the forks will import them in their turn.
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # so that the forks need not copy what they only look at

    def _be_the_tests(self, tests: Iterable[str], order: dict[str, float]) -> NoReturn:
        """In the child: forget our own modules, which the parent has from another folder, and hand over to pytest."""
        code = 1
        try:
            os.setpgrp()
            os.chdir(self.folder)
            os.environ |= {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            sys.dont_write_bytecode = False  # pytest keeps its rewritten tests as bytecode
            sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
            for name in [name for name in sys.modules if _is_ours(name)]:
                del sys.modules[name]
            sys.modules["__main__"] = ModuleType(
                "__main__"
            )  # else processes that tests spawn would import this program
            with self._output.open("wb") as output:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
            import pytest

            watcher = _Watcher(order)
            code = pytest.main([*OPTIONS, *tests], plugins=[watcher])
            watcher.tell(self._said, int(code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(int(code))


class _Watcher:
    """A plugin of pytest that puts quick tests first and notes what fails."""

    def __init__(self, order: dict[str, float]) -> None:
        self._order = order
        self._failed: str | None = None
        self._took: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self._order.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._took[report.nodeid] = self._took.get(report.nodeid, 0.0) + report.duration
        if report.failed and self._failed is None:
            self._failed = report.nodeid

    def tell(self, path: Path, code: int) -> None:
        """Exit codes other than 0 without a failed test are errors at import, which is a failure, too."""
        failed = self._failed or (f"pytest ended with {code}" if code else None)
        libraries = [name for name in list(sys.modules) if not _is_ours(name)]
        path.write_text(json.dumps({"failed": failed, "took": self._took, "libraries": libraries}))


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def _wait(child: int, until: float) -> bool:
    """Whether it ended by itself; whatever it started ends with it."""
    ended = False
    while not ended and time.monotonic() < until:
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        if not ended:
            time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return ended
