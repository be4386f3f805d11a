"""Writing for people without ever waiting for them: a reader that stalls or is gone must not hold up the server."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from typing import TextIO

MAX_PIECES = 10_000
"""Pieces of text that wait for the reader; what comes after is dropped, and its number is told when he reads again."""
LAST_S = 1.0
"""How long the end waits for the reader to take what is left."""


class PatientWriter(io.TextIOBase):
    """A text stream over another, written by a thread of its own: `write` takes no time and never fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._is_lost = False
        self._changed = threading.Condition()
        threading.Thread(target=self._pass_on, name="output", daemon=True).start()

    def write(self, text: str) -> int:
        """Have a piece of text written soon, or dropped when too many wait."""
        with self._changed:
            if self._is_lost or len(self._waiting) >= MAX_PIECES:
                self._dropped += 1
            else:
                self._waiting.append(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: everything is written as soon as it can be."""

    def finish(self) -> None:
        """Wait for what is left to be written, but not long."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_lost or not self._waiting, LAST_S)

    def _pass_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = self._waiting[0]
            if not self._written(text):
                return
            with self._changed:
                self._waiting.popleft()
                dropped, self._dropped = (self._dropped, 0) if not self._waiting else (0, self._dropped)
                self._changed.notify_all()
            if dropped:
                self.write(f"({dropped} pieces of output were dropped: nobody read them)\n")

    def _written(self, text: str) -> bool:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        """The reader is gone for good: let the interpreter's own last flush succeed, and forget what waits."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass  # a stream without a descriptor
        with self._changed:
            self._is_lost = True
            self._waiting.clear()
            self._changed.notify_all()
