"""What a store raises; nothing is half done when it does."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked (disk full, file damaged); nothing was half done."""


class DiskRefusedError(StoreError):
    """There is no room, or no right to write; nothing was stored."""


class QueueFullError(StoreError):
    """More jobs wait than the caller or the server allows; nothing was stored."""


class BudgetSpentError(StoreError):
    """A budget of the key has no room for the job; nothing was stored. The sentence says which."""


class RepeatMismatchError(StoreError):
    """The idempotency key has been given to a submit that asks for something else; nothing was stored."""
