"""What a store raises; nothing is half done when it does, and nothing at all but for InDoubtError."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any


class StoreError(Exception):
    """The store cannot do what was asked (disk full, file damaged); nothing was half done."""


class DiskRefusedError(StoreError):
    """There is no room, or no right to write; nothing was stored."""


class InDoubtError(StoreError):
    """The database does not say whether it has done what was asked. Args: answer: done when it does."""

    def __init__(self, answer: Future[Any]) -> None:
        super().__init__("the database does not answer: whether it was stored is not known")
        self.answer = answer


class QueueFullError(StoreError):
    """More jobs wait than the caller or the server allows; nothing was stored."""


class InputsFullError(StoreError):
    """Large inputs of requests that wait take as much room as they may; nothing was stored."""

    def __init__(self) -> None:
        super().__init__(
            "The pictures in waiting requests take as much room as they may: upload them and send their addresses, "
            "or ask again when fewer requests wait"
        )


class BudgetSpentError(StoreError):
    """A budget of the key has no room for the job; nothing was stored. The sentence says which."""


class RepeatMismatchError(StoreError):
    """The idempotency key has been given to a submit that asks for something else; nothing was stored."""
