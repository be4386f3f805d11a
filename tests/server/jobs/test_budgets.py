"""What a key may use in a day or a month, held by every store: also by submits at once, and over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.api.prices import Prices
from server.jobs.limits import BudgetRule
from server.jobs.store.base import Store
from server.jobs.store.budgets import Budget
from server.jobs.store.errors import BudgetSpentError
from server.jobs.store.job import JobStatus, NewJob, Outcome
from server.jobs.store.sqlite import SqliteStore
from tests.server.stores import LEASE_S, OPEN_STORE, REJECTED, Clock, new_job

PICTURE = Outcome(JobStatus.COMPLETED, 200, {"images": [{"width": 1024, "height": 1024}]})
"""One unit."""
PRICES = Prices("EUR", {"fal-ai/flux/dev": 0.1, "*": 0.01})


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = datetime(2026, 1, 31, 23, tzinfo=UTC).timestamp()
    return clock


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def budget(text: str) -> Budget:
    return PRICES.budget(BudgetRule.parse(text))


def job(key: str = "a", num_images: int = 1, **about: Any) -> NewJob:
    params = {"model": "flux-shapes", "width": 1024, "height": 1024, "num_images": num_images}
    return new_job(**{"key_id": key, "params": params} | about)


def submit(store: Store, *budgets: str, **about: Any) -> str:
    return store.enqueue(job(**about), budgets=[budget(text) for text in budgets]).id


def end_next(store: Store, outcome: Outcome = PICTURE) -> None:
    (claimed,) = store.claim("w1", 1, LEASE_S)
    assert store.finish(claimed.id, "w1", claimed.epoch, outcome)


def test_what_waits_and_what_was_drawn_count_together(store: Store) -> None:
    submit(store, "3mp/day")
    end_next(store)
    submit(store, "3mp/day")
    submit(store, "3mp/day")
    with pytest.raises(BudgetSpentError, match=r"3 megapixels a day.*3 are used or waiting.*2026-02-01"):
        submit(store, "3mp/day")
    submit(store, "3mp/day", key="b")
    submit(store, key="a")


def test_a_request_that_alone_is_too_much_is_refused_and_a_smaller_one_taken(store: Store) -> None:
    with pytest.raises(BudgetSpentError):
        submit(store, "3mp/day", num_images=4)
    submit(store, "3mp/day", num_images=3)


def test_what_fails_gives_its_share_back(store: Store) -> None:
    submit(store, "1mp/day")
    end_next(store, REJECTED)
    cancelled = submit(store, "1mp/day")
    store.request_cancel(cancelled)
    submit(store, "1mp/day")
    with pytest.raises(BudgetSpentError):
        submit(store, "1mp/day")


def test_an_input_that_draws_nothing_is_answered_as_ever(store: Store) -> None:
    submit(store, "1mp/day")
    assert store.enqueue(job(params=None, outcome=REJECTED), budgets=[budget("1mp/day")]).status is JobStatus.FAILED


def test_money_counts_by_what_each_endpoint_costs_and_every_budget_holds(store: Store) -> None:
    submit(store, "0.3/month", num_images=2)
    submit(store, "0.3/month", endpoint="fal-ai/flux/schnell", num_images=4)
    with pytest.raises(BudgetSpentError, match=r"0\.3 EUR a month.*0\.24"):
        submit(store, "0.3/month")
    with pytest.raises(BudgetSpentError, match="6 megapixels a day"):
        submit(store, "9/month", "6mp/day")
    submit(store, "0.3/month", endpoint="fal-ai/flux/schnell", num_images=4)


def test_a_day_and_a_month_begin_anew(store: Store, clock: Clock) -> None:
    clock.advance(-86400)
    submit(store, "1mp/day", "2mp/month")
    end_next(store)
    clock.advance(86400)
    submit(store, "1mp/day", "2mp/month")
    end_next(store)
    with pytest.raises(BudgetSpentError, match="1 megapixels a day"):
        submit(store, "1mp/day", "2mp/month")
    with pytest.raises(BudgetSpentError, match="2 megapixels a month"):
        submit(store, "2mp/month")
    clock.advance(7200)
    submit(store, "1mp/day", "2mp/month")


def test_submits_at_once_take_no_more_than_there_is(store: Store) -> None:
    def attempt(_: int) -> bool:
        try:
            submit(store, "5mp/day")
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(attempt, range(40)))
    assert sum(taken) == 5
    assert store.units_since("a", 0) == {"fal-ai/flux/dev": 5}


def test_what_was_used_and_what_waits_is_known_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    store = SqliteStore(tmp_path / "jobs.db", clock)
    for _ in range(3):
        submit(store, "3mp/day")
    end_next(store)
    store.claim("w1", 1, LEASE_S)
    store.close()
    store = SqliteStore(tmp_path / "jobs.db", clock)
    store.recover()
    assert store.units_since("a", 0) == {"fal-ai/flux/dev": 3}
    with pytest.raises(BudgetSpentError):
        submit(store, "3mp/day")
    end_next(store)
    end_next(store)
    assert store.units_since("a", 0) == {"fal-ai/flux/dev": 3}
    store.close()


@pytest.mark.parametrize("text", ["", "5", "5/week", "-5/day", "5 EUR/day", "nan/day", "1e3/day", "0x5/day", "٣/day"])
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="200mp/month"):
        BudgetRule.parse(text)
