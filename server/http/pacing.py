"""Turns between callers, so that a crowd of one key's calls does not hold up another's.

Answers at most 50 polls in one iteration of the event loop: a submit needs several iterations (its body, the commit on
a thread, its answer), and a thousand clients that poll at the same moment would make each as long as a thousand
answers. Of one key's submits a few are worked on at once: the others would fill the threads that commit them, and each
iteration with their checks.
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


class Lanes:
    """A lane for each key: `width` of its calls are under way at once, the others wait in their order."""

    def __init__(self, width: int = SUBMITS_AT_ONCE) -> None:
        self._width = width
        self._lanes: dict[str, asyncio.Semaphore] = {}
        self._callers: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, whose: str) -> AsyncIterator[None]:
        """Inside, the call is one of its key's few."""
        lane = self._lanes.setdefault(whose, asyncio.Semaphore(self._width))
        self._callers[whose] += 1
        try:
            async with lane:
                yield
        finally:
            self._callers[whose] -= 1
            if not self._callers[whose]:
                del self._callers[whose], self._lanes[whose]

    async def pause(self, whose: str, seconds: float = REFUSAL_S) -> None:
        """Stand still in one's lane: of a width of one, so many a second pass at most."""
        async with self.turn(whose):
            await asyncio.sleep(seconds)

    def __len__(self) -> int:
        """Keys that have calls under way, or waiting."""
        return len(self._lanes)
