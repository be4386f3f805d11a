"""Answers at most 50 polls in one iteration of the event loop, so that submits are not delayed by a crowd of polls.

A submit needs several iterations (its body, the commit on a thread, its answer). A thousand clients that poll at the
same moment would make each iteration as long as a thousand answers.
"""

from __future__ import annotations

import asyncio
from collections import deque

POLLS_A_TURN = 50
"""About four milliseconds of answers; another iteration costs some tens of microseconds."""


class Pacer:
    """Lets `size` callers pass in one iteration of the loop; the others follow in order, in later ones."""

    def __init__(self, size: int = POLLS_A_TURN) -> None:
        self._size = size
        self._left = size
        self._is_due = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return at once, unless `size` callers have passed in this iteration; then in a later one."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _next(self) -> None:
        self._left, self._is_due = self._size, False
        while self._waiting and self._left:
            place = self._waiting.popleft()
            if not place.done():  # its client may have left
                place.set_result(None)
                self._left -= 1
        if self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)
