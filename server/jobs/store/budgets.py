"""What a key may use in a day or a month, and what its unfinished jobs will use: both are counted at every submit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Lock
from typing import Any, Literal

from server.jobs.store.accounts import DAY_S, MEGAPIXEL, day_of
from server.jobs.store.errors import BudgetSpentError
from server.jobs.store.job import NewJob, Standing

Period = Literal["day", "month"]
UnitsSince = Callable[[int], Mapping[str, int]]
"""First day -> megapixels by endpoint: what a key has used since then, and what its unfinished jobs will use."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound on what one key uses in a calendar day or month, UTC.

    Args: amount: of `unit`, a currency or megapixels. rate: of an endpoint, how much of it one megapixel is.
    """

    amount: float
    unit: str
    period: Period
    rate: Callable[[str], float]

    def first_day(self, now: float) -> int:
        """Of the period that `now` is in, as days since 1970-01-01."""
        today = _date(now)
        first = today if self.period == "day" else today.replace(day=1)
        return day_of(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())

    def next_date(self, now: float) -> date:
        """When the next period begins."""
        today = _date(now)
        if self.period == "day":
            return today + timedelta(days=1)
        return (today.replace(day=28) + timedelta(days=4)).replace(day=1)

    def of(self, units: Mapping[str, int]) -> float:
        """How much of it these megapixels by endpoint are."""
        return round(sum(self.rate(endpoint) * count for endpoint, count in units.items()), 6)


def check(budgets: Iterable[Budget], new: NewJob, units_since: UnitsSince, now: float) -> None:
    """Raises: BudgetSpentError if a budget of the key has no room for this job."""
    for budget in budgets:
        used = budget.of(units_since(budget.first_day(now)))
        if round(used + budget.of({new.endpoint: expected_units(new.params)}), 6) > budget.amount:
            raise BudgetSpentError(
                f"The budget of this key, {budget.amount:g} {budget.unit} a {budget.period}, has no room for this "
                f"request: {used:g} are used or waiting. It begins anew on {budget.next_date(now)} (UTC); the operator "
                "can raise it"
            )


def expected_units(params: Mapping[str, Any] | None) -> int:
    """Megapixels that a job will be counted for if it ends well, each picture rounded up; 0 if it draws none."""
    asked = params or {}
    pixels = int(asked.get("width") or 0) * int(asked.get("height") or 0)
    return int(asked.get("num_images") or 1) * math.ceil(pixels / MEGAPIXEL)


class Pending:
    """What the unfinished jobs of every key will use, by endpoint; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._units: dict[str, Counter[str]] = {}

    def change(self, before: Standing | None, after: Standing | None) -> None:
        """Take note of a committed change."""
        with self._lock:
            for job, sign in ((before, -1), (after, 1)):
                if job is not None and not job.status.is_finished and job.key_id:
                    self._add(job, sign)

    def of(self, key_id: str) -> Counter[str]:
        """Megapixels by endpoint."""
        with self._lock:
            return Counter(self._units.get(key_id, ()))

    def _add(self, job: Standing, sign: int) -> None:
        units = self._units.setdefault(job.key_id, Counter())
        units[job.endpoint] += sign * expected_units(job.params)
        if not +units:
            del self._units[job.key_id]


def _date(now: float) -> date:
    return date(1970, 1, 1) + timedelta(days=now // DAY_S)
