"""How many deliveries a webhook's receiver may hold at once: few until it has answered, one while it does not.

Without this, receivers that hang hold every place for the length of a try, and the others wait.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from urllib.parse import urlsplit

AT_ONCE = 100
"""Deliveries under way at the same time."""
UNPROVEN_AT_ONCE = 50
"""Of them to receivers that have not answered lately."""
AT_ONCE_PER_RECEIVER = 20
"""Of them to one host and port."""
FIRST_SHARE = 2
"""What a receiver may hold that has never answered; every answer doubles it."""
REMEMBERED = 10_000


class Receivers:
    """Places for deliveries, by receiver."""

    def __init__(self) -> None:
        self._shares: OrderedDict[str, int] = OrderedDict()
        self._busy: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether nobody may have another."""
        return self._busy.total() >= AT_ONCE

    def has_room(self, receiver: str) -> bool:
        """Whether one more delivery to it may begin."""
        if self.is_full or self._busy[receiver] >= self._share(receiver):
            return False
        return self._is_proven(receiver) or self._unproven() < UNPROVEN_AT_ONCE

    def begin(self, receiver: str) -> None:
        """A delivery to it has begun."""
        self._busy[receiver] += 1

    def end(self, receiver: str, has_answered: bool) -> None:
        """A delivery to it has ended, with whatever HTTP status, or with none."""
        self._busy[receiver] -= 1
        self._busy += Counter()  # forgets receivers with nothing under way
        self._shares[receiver] = min(2 * self._share(receiver), AT_ONCE_PER_RECEIVER) if has_answered else 1
        self._shares.move_to_end(receiver)
        if len(self._shares) > REMEMBERED:
            self._shares.popitem(last=False)

    def _share(self, receiver: str) -> int:
        return min(self._shares.get(receiver, FIRST_SHARE), AT_ONCE_PER_RECEIVER)

    def _is_proven(self, receiver: str) -> bool:
        return self._shares.get(receiver, 0) > FIRST_SHARE

    def _unproven(self) -> int:
        return sum(number for receiver, number in self._busy.items() if not self._is_proven(receiver))


def receiver_of(url: str) -> str:
    """Whom an address belongs to: its host and port."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return url[:100]
