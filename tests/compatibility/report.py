"""Makes docs/compatibility.md from a run: a pytest plugin that `make compatibility` loads.

    pytest -p tests.compatibility.report tests/compatibility tests/conformance

What a run proved goes to results.json, row by row and case by case; rows that it did not run keep what an earlier one
proved. The page's tables are drawn from that file. `--compatibility-names` only tells what there is to prove.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.conform.cases import Case
from tests.compatibility import page
from tests.compatibility.page import Proof, Results
from tests.compatibility.rows import Row

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
DRIVEN_BY = {
    "fal_client 1.0.3": ("python", "proxied", "by_name"),
    "@fal-ai/client 1.10.1": ("js", "node"),
}
"""Which client a numbered case runs, by words in the names of its fixtures; without any it is a raw request."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility-names", action="store_true", help="print the rows and cases that tests collect")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Report(config.getoption("--compatibility-names")), "compatibility")


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Report:
    """Follows one run."""

    only_names: bool
    items: list[pytest.Item] = field(default_factory=list)
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "passed" and report.when != "call":
            return
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        earlier = self.outcomes.get(report.nodeid, ("passed", ""))
        if earlier[0] != "failed":
            self.outcomes[report.nodeid] = (report.outcome, reason.removeprefix("Skipped: "))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        collected = proofs(self.items, self.outcomes)
        if self.only_names:
            print(json.dumps({"clients": sorted(collected.clients), "cases": sorted(collected.cases, key=int)}))
        elif self.outcomes:
            results = read().merged_with(collected)
            RESULTS.write_text(results.to_json())
            PAGE.write_text(page.filled(PAGE.read_text(), results))


def read() -> Results:
    """What runs have proved so far."""
    return Results.from_json(RESULTS.read_text()) if RESULTS.exists() else Results()


def proofs(items: Iterable[pytest.Item], outcomes: dict[str, tuple[str, str]]) -> Results:
    """What these tests proved, by row and by case."""
    results = Results(run_on=environment())
    for item in items:
        proof = Proof(*outcomes.get(item.nodeid, ("not run", "")))
        for marker in item.iter_markers("client"):
            row: Row = marker.args[0]
            results.clients[row.title] = proof.with_those_of(results.clients.get(row.title))
        for marker in item.iter_markers("case"):
            proof = Proof(proof.outcome, proof.reason, [title_of(item)], clients_of(item))
            for number in marker.args:
                results.cases[str(number)] = proof.with_those_of(results.cases.get(str(number)))
    return results


def title_of(item: pytest.Item) -> str:
    """The test's name as a sentence, without its number; a case of `fluxserve conform` has its own."""
    if isinstance(case := getattr(item, "callspec", None) and item.callspec.params.get("case"), Case):
        return case.title
    words = getattr(item, "originalname", item.name).removeprefix("test_").split("_")
    return " ".join(words[1:] if words[0].isdigit() else words)


def clients_of(item: pytest.Item) -> list[str]:
    """The clients that a test drives."""
    if rows := [marker.args[0].title for marker in item.iter_markers("client")]:
        return rows
    fixtures: list[str] = getattr(item, "fixturenames", [])
    words = {word for name in fixtures for word in (name, *name.split("_"))}
    return [client for client, known in DRIVEN_BY.items() if words & set(known)] or ["raw"]


def environment() -> str:
    """What the run ran on, in words."""
    node = _version("node")
    return f"Python {platform.python_version()}, {f'Node {node}' if node else 'no Node'}, {platform.system()}"


def _version(command: str) -> str | None:
    try:
        shown: Any = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return str(shown.stdout).strip().removeprefix("v")
