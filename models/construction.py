"""Making modules in one thread while another draws.

The libraries change torch's default dtype, and how modules register parameters, for the whole process while they make a
module. So drawing stands still for these moments, and only for them: files are read and moved beside the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

_LOOK_S = 0.02


class Construction:
    """Keeps what is made and what is drawn apart."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.RLock())
        self._makers: set[int] = set()
        """Threads that wait to make a module."""

    @contextmanager
    def making(self) -> Iterator[None]:
        """Around what changes the process; also inside `undisturbed`."""
        me = threading.get_ident()
        self._makers.add(me)
        with self._turn:
            self._makers.discard(me)
            yield

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Around drawing; who waits to make something comes first, or a busy device would never let it."""
        with self._turn:
            while self._makers:
                self._turn.wait(_LOOK_S)
            yield

    def await_end(self, work: Future[Any]) -> None:
        """Let another thread finish, also if it makes modules and this one is `undisturbed`."""
        with self._turn:
            while not work.done():
                self._turn.wait(_LOOK_S)


CONSTRUCTION = Construction()
