"""Short turns of the event loop: polls that arrive together are answered a few at a time.

A submit needs several turns of the loop (its body, the commit on a thread, its answer). A thousand clients that poll in
step would make each of them as long as a thousand answers; so a turn answers a share of them and goes round again.
"""

from __future__ import annotations

import asyncio
from collections import deque

POLLS_A_TURN = 50
"""About four milliseconds of answers; a turn of its own costs some tens of microseconds."""


class Pacer:
    """Lets so many callers through in one turn of the loop; the others follow in order, a turn later each time."""

    def __init__(self, size: int = POLLS_A_TURN) -> None:
        self._size = size
        self._left = size
        self._is_due = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return when it is the caller's turn: at once, unless many came at the same time."""
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
