"""What one tenant may take of a server, and the count of what it has taken."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from server.jobs.store.budgets import Budget, Period

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit.

    Args:
        running: requests that workers hold at once; more wait, and are never refused.
        waiting: requests that may wait; one more is refused.
        per_minute: submits; the first minute's may come all at once.
        storage_bytes: results and uploads that are kept.
    """

    running: int | None = None
    waiting: int | None = None
    per_minute: int | None = None
    storage_bytes: int | None = None

    def within(self, other: Limits) -> Limits:
        """The tighter of both, one by one."""
        return Limits(
            least(self.running, other.running),
            least(self.waiting, other.waiting),
            least(self.per_minute, other.per_minute),
            least(self.storage_bytes, other.storage_bytes),
        )

    def over(self, defaults: Limits) -> Limits:
        """These, and the defaults for what they leave open."""
        return Limits(
            _first(self.running, defaults.running),
            _first(self.waiting, defaults.waiting),
            _first(self.per_minute, defaults.per_minute),
            _first(self.storage_bytes, defaults.storage_bytes),
        )


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """What a key's owner was told: so much `money`, in the currency of the price table, or so many megapixels."""

    amount: float
    unit: Literal["money", "megapixels"]
    period: Period

    @classmethod
    def parse(cls, text: str) -> BudgetRule:
        """`5/day` in money, `200mp/month` in megapixels. Raises: ValueError."""
        found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(mp)?/(day|month)", text.strip().lower())
        if found is None:
            raise ValueError(f"{text!r} is no budget: write 5/day (in the currency of --prices) or 200mp/month")
        amount, unit, period = found.groups()
        return cls(float(amount), "megapixels" if unit else "money", "day" if period == "day" else "month")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return (
            f"{self.amount:.6f}".rstrip("0").rstrip(".") + f"{'mp' if self.unit == 'megapixels' else ''}/{self.period}"
        )


class RateLimitedError(Exception):
    """More submits than the key may make. Args: retry_after_s: when the next one will be taken."""

    def __init__(self, per_minute: int, retry_after_s: float) -> None:
        super().__init__(f"This key may submit {per_minute} requests a minute")
        self.retry_after_s = math.ceil(retry_after_s)


class StorageFullError(Exception):
    """The key keeps as many bytes as it may."""

    def __init__(self, storage_bytes: int) -> None:
        super().__init__(
            f"This key keeps as many bytes as it may ({storage_bytes}): wait until results and uploads expire, "
            "or give them a shorter life"
        )


class Allowance:
    """Asks whether a tenant may go on; safe to use from any thread.

    Args: limits_of: of a tenant, as they are now. stored: bytes that it keeps. clock: seconds that only go forward.
        budgets: of a key, by its id, as they are now.
    """

    def __init__(
        self,
        limits_of: Callable[[str], Limits] = lambda tenant: Limits(),
        stored: Callable[[str], int] = lambda tenant: 0,
        clock: Callable[[], float] = time.monotonic,
        budgets: Callable[[str], Sequence[Budget]] = lambda key_id: (),
    ) -> None:
        self.budgets = budgets
        self._limits_of = limits_of
        self._stored = stored
        self._clock = clock
        self._lock = Lock()
        self._paid_until: dict[str, float] = {}
        """When each tenant's submits so far would have been due at an even pace (the generic cell rate algorithm)."""

    def running(self, tenant: str) -> int | None:
        """How many of its requests workers may hold."""
        return self._limits_of(tenant).running

    def waiting(self, tenant: str) -> int | None:
        """How many of its requests may wait."""
        return self._limits_of(tenant).waiting

    def room(self, tenant: str) -> int | None:
        """Bytes that it may still store; None for any number."""
        limit = self._limits_of(tenant).storage_bytes
        return None if limit is None else max(0, limit - self._stored(tenant))

    def count_submit(self, tenant: str) -> None:
        """Raises: StorageFullError, RateLimitedError."""
        limits = self._limits_of(tenant)
        if limits.storage_bytes is not None and self._stored(tenant) >= limits.storage_bytes:
            raise StorageFullError(limits.storage_bytes)
        if limits.per_minute is not None:
            self._pay(tenant, limits.per_minute)

    def check_rate(self, tenant: str) -> None:
        """Whether a submit would be taken now, without counting one: before anything is read of it.

        Raises: RateLimitedError."""
        per_minute = self._limits_of(tenant).per_minute
        if per_minute is not None:
            self._next_due(tenant, per_minute)

    def _pay(self, tenant: str, per_minute: int) -> None:
        with self._lock:
            self._paid_until[tenant] = self._next_due(tenant, per_minute)

    def _next_due(self, tenant: str, per_minute: int) -> float:
        """What the tenant has paid until, with one submit more. Raises: RateLimitedError."""
        now = self._clock()
        due = max(self._paid_until.get(tenant, now), now) + MINUTE_S / per_minute
        if due > now + MINUTE_S:
            raise RateLimitedError(per_minute, due - now - MINUTE_S)
        return due


def least(first: int | None, second: int | None) -> int | None:
    """The tighter of two limits, where None is no limit."""
    given = [value for value in (first, second) if value is not None]
    return min(given, default=None)


def _first(first: int | None, second: int | None) -> int | None:
    return second if first is None else first
