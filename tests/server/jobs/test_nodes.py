"""What a store knows of the nodes that serve from it, held by every store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.jobs.store.base import Store
from server.jobs.store.nodes import KEPT_S, SILENT_S, NodeReport
from tests.server.stores import OPEN_STORE, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def report(name: str, state: str = "ready") -> NodeReport:
    workers = [{"name": f"{name}/{index}", "device": "cpu", "holds": [{"request_id": "é"}]} for index in range(2)]
    return NodeReport(name, "http://10.0.0.1:8000", "0.1.0", state, 1_000_000.0, 3, None, workers)


def names(store: Store) -> list[str]:
    return [node.report.name for node in store.nodes()]


def test_a_node_is_known_by_its_last_report_until_it_leaves(store: Store) -> None:
    for each in (report("b"), report("a", "loading"), report("a")):
        store.note_node(each)
    assert [node.report for node in store.nodes()] == [report("a"), report("b")]
    store.forget_node("a")
    store.forget_node("a")
    assert names(store) == ["b"]


def test_a_node_that_reports_no_more_falls_silent_and_is_forgotten(store: Store, clock: Clock) -> None:
    store.note_node(report("gone"))
    clock.advance(SILENT_S)
    store.note_node(report("here"))
    assert [(node.report.name, node.is_silent) for node in store.nodes()] == [("gone", True), ("here", False)]
    clock.advance(KEPT_S)
    store.note_node(report("here"))
    assert names(store) == ["here"]


@pytest.mark.parametrize("name", ["a", "a/1"])
def test_who_is_told_to_rest_hears_of_it_until_told_otherwise(store: Store, name: str) -> None:
    for each in (report("a"), report("ab")):
        store.note_node(each)
    assert store.rest(name, is_wanted=True) is True
    assert store.rest(name, is_wanted=True) is True
    assert (store.note_node(report("a")), store.note_node(report("ab"))) == ({name}, set())
    assert [node.resting for node in store.nodes()] == [{name}, set()]
    assert store.rest(name, is_wanted=False) is True
    assert store.note_node(report("a")) == set()


def test_nobody_rests_for_a_name_that_is_not_there(store: Store) -> None:
    assert store.rest("a", is_wanted=True) is False
    store.note_node(report("a"))
    assert store.note_node(report("a")) == set()


def test_an_order_to_rest_ends_with_the_node(store: Store) -> None:
    store.note_node(report("a"))
    store.rest("a/0", is_wanted=True)
    store.forget_node("a")
    store.note_node(report("a"))
    assert [node.resting for node in store.nodes()] == [set()]
