"""docs/compatibility.md speaks of exactly the rows and cases that tests prove, and prints what `fluxserve env` does."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from server.api.clients import CLIENTS
from tests.acceptance.serving import ROOT
from tests.compatibility import page, report
from tests.compatibility.page import CASES, DEFAULT, Proof, Results
from tests.compatibility.rows import ROWS
from tests.conformance.reasons import REASONS


@pytest.fixture(scope="module")
def collected() -> dict[str, list[str]]:
    """What the tests of both suites say that they prove; nothing is run."""
    folders = ["tests/compatibility", "tests/conformance"]
    flags = ["-q", "--collect-only", "-m", "not gpu", "-p", "tests.compatibility.report", "--compatibility-names"]
    command = [sys.executable, "-m", "pytest", *flags, *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=110)
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"clients"'))
    names: dict[str, list[str]] = json.loads(line)
    return names


def test_the_page_is_drawn_from_the_results() -> None:
    text = report.PAGE.read_text()
    assert page.filled(text, report.read()) == text, "make compatibility"


def test_the_results_are_of_the_tests_that_exist(collected: dict[str, list[str]]) -> None:
    results = report.read()
    assert sorted(results.clients) == collected["clients"] == sorted(row.title for row in ROWS)
    assert sorted(results.cases, key=int) == collected["cases"], "make compatibility"
    assert {int(case) for case in collected["cases"]} | set(REASONS) == set(CASES)


def test_nothing_fails_and_whatever_was_skipped_says_why() -> None:
    results = report.read()
    for name, proof in (results.clients | results.cases).items():
        assert proof.outcome == "passed" or (proof.outcome == "skipped" and proof.reason), name


def test_the_page_names_the_versions_that_are_pinned() -> None:
    pinned = json.loads((ROOT / "tests" / "compatibility" / "js" / "package.json").read_text())["dependencies"]
    lists = (ROOT / "tests" / "compatibility" / "python").glob("*.txt")
    pins = dict(
        line.split("==") for file in lists for line in file.read_text().splitlines() if "fal_client" not in line
    )
    project = (ROOT / "pyproject.toml").read_text()
    for row in ROWS:
        if row.setup == "server-proxy":
            assert pinned["@fal-ai/server-proxy"] == row.version
        elif row.setup == "huggingface":
            assert f"huggingface-hub=={row.version}\n" in (ROOT / "requirements.lock").read_text()
        elif row.package.startswith("fal_client-"):
            assert row.package == f"fal_client-{row.version}"
        elif row.package in pins:
            assert pins[row.package] == row.version
        elif row.package:
            assert pinned[row.package].rpartition("@")[2] == row.version
        elif row.version:
            assert f'"fal_client=={row.version}"' in project


def test_every_set_up_that_is_printed_is_tried() -> None:
    assert {row.setup for row in ROWS} == set(CLIENTS)
    assert re.search(r"```sh\nexport FAL_RUN_HOST=127.0.0.1:8443/run\n", page.setups())
    assert DEFAULT.key in page.setups()


def test_newer_results_replace_older_ones_and_what_was_not_run_stays() -> None:
    title = ROWS[0].title
    old = Results(
        "then", {title: Proof("passed"), "gone 1.0": Proof("passed")}, {"1": Proof("failed"), "2": Proof("passed")}
    )
    new = Results("now", {title: Proof()}, {"1": Proof("passed"), "3": Proof("skipped", "no Node")})
    merged = Results.from_json(old.merged_with(new).to_json())
    assert (merged.run_on, merged.clients) == ("now", {title: Proof("passed")})
    assert merged.cases == {"1": Proof("passed"), "2": Proof("passed"), "3": Proof("skipped", "no Node")}


def test_one_test_that_fails_fails_its_case() -> None:
    both = Proof("failed", tests=["a"]).with_those_of(Proof("passed", tests=["b"]))
    assert (both.outcome, both.tests) == ("failed", ["b", "a"])
    assert Proof("skipped", "no Node").with_those_of(Proof("passed")).outcome == "passed"
