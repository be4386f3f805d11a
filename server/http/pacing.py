"""Turns between callers, so that a crowd of one key's calls does not hold up another's.

Answers at most 50 polls in one iteration of the event loop: a submit needs several iterations (its body, the commit on
a thread, its answer), and a thousand clients that poll at the same moment would make each as long as a thousand
answers. Of one key's submits a few are worked on at once: the others would fill the threads that commit them, and each
iteration with their checks. And as long as other keys call, too, a key that keeps submitting is worked on at a steady
pace, which leaves the others most of each moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

POLLS_A_TURN = 50
"""About four milliseconds of answers; another iteration costs some tens of microseconds."""
SUBMITS_AT_ONCE = 4
"""Of one key. They share a commit, so that the checks of so many, a millisecond each, stay what limits them."""
REFUSAL_S = 0.01
PACE_S = 0.02
"""Between a key's submits, after the first few, while others call. A submit takes a millisecond or two of the loop: one
call of another key meets one of them at most, and fifty a second fill any device."""
LARGE = 1 << 18
"""Bytes of JSON or msgpack that count as an ordinary submit. MiBs are parsed in one piece, 2 ms for each, which
everybody else waits for."""
COMPANY_S = 1.0
"""How long after its last call a key counts as there."""


class Pacer:
    """Lets `size` callers pass in one iteration of the loop; the others follow in later ones, the keys in turn."""

    def __init__(self, size: int = POLLS_A_TURN) -> None:
        self._size = size
        self._left = size
        self._is_due = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def wait(self, whose: str = "") -> None:
        """Return at once, unless `size` callers have passed in this iteration; then in a later one."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(place)
        await place

    def _next(self) -> None:
        self._left, self._is_due = self._size, False
        while self._waiting and self._left:
            whose, line = self._waiting.popitem(last=False)
            place = line.popleft()
            if line:
                self._waiting[whose] = line  # behind everybody else
            if not place.done():  # its client may have left
                place.set_result(None)
                self._left -= 1
        if self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)


class Company:
    """Who called lately, as far as it matters: whether anybody but a given key did."""

    def __init__(self) -> None:
        self._latest = self._another = ("", -COMPANY_S)

    def note(self, whose: str, now: float) -> None:
        """A call of this key."""
        if whose != self._latest[0]:
            self._another = self._latest
        self._latest = (whose, now)

    def of(self, whose: str, now: float) -> bool:
        """Whether another key has called within COMPANY_S."""
        return any(who != whose and now - at < COMPANY_S for who, at in (self._latest, self._another))


class Lanes:
    """A lane for each key: `width` of its calls are under way at once, the others wait in their order.

    Among others (as `note` was told) a key's calls begin PACE_S apart, once `width` have begun at once."""

    def __init__(self, width: int = SUBMITS_AT_ONCE) -> None:
        self._width = width
        self._lanes: dict[str, asyncio.Semaphore] = {}
        self._callers: Counter[str] = Counter()
        self._due: OrderedDict[str, float] = OrderedDict()
        self._company = Company()

    def note(self, whose: str) -> None:
        """This key calls, for whatever."""
        self._company.note(whose, asyncio.get_running_loop().time())

    @asynccontextmanager
    async def turn(self, whose: str, weight: float = 1.0) -> AsyncIterator[None]:
        """Inside, the call is one of its key's few. Args: weight: how many ordinary calls it takes as long as."""
        self.note(whose)
        lane = self._lanes.setdefault(whose, asyncio.Semaphore(self._width))
        self._callers[whose] += 1
        try:
            async with lane:
                await self._at_a_pace(whose, weight)
                yield
        finally:
            self._callers[whose] -= 1
            if not self._callers[whose]:
                del self._callers[whose], self._lanes[whose]

    def charge(self, whose: str, weight: float) -> None:
        """A call of this key that is under way takes so much longer: the next one waits for that, too."""
        if whose in self._due:
            self._due[whose] += PACE_S * weight

    async def _at_a_pace(self, whose: str, weight: float) -> None:
        now = asyncio.get_running_loop().time()
        if not self._company.of(whose, now):
            return
        earliest = now - (self._width - 1) * PACE_S
        due = max(self._due.pop(whose, earliest), earliest)
        self._due[whose] = due + PACE_S * weight
        while next(iter(self._due.values())) < earliest:
            self._due.popitem(last=False)  # called so long ago that it says nothing any more
        if due > now:
            await asyncio.sleep(due - now)

    async def pause(self, whose: str, seconds: float = REFUSAL_S) -> None:
        """Stand still in one's lane: of a width of one, so many a second pass at most."""
        async with self.turn(whose):
            await asyncio.sleep(seconds)

    def __len__(self) -> int:
        """Keys that have calls under way, or waiting."""
        return len(self._lanes)
