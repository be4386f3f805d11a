"""Webhooks that are owed and were tried: rows of the outbox and of the delivery log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

TRIES_KEPT = 50
"""So many tries of one webhook stay in the delivery log, the newest."""

LOG_KEPT_S = 30 * 86400.0
"""Tries older than this leave the delivery log; that may be long after the job itself is gone."""

LONGEST_PAUSE_S = 2400.0
"""Between two tries of one webhook, at most."""

LOG_ROWS = 100_000
"""And so do the oldest, beyond this many."""


class Redelivery(StrEnum):
    """What became of an order to deliver a webhook again."""

    ORDERED = "ordered"
    """It is due now, with all its tries before it."""
    NOT_FINISHED = "not_finished"
    """The job has not ended; its webhook goes out when it does."""
    NO_WEBHOOK = "no_webhook"
    """The job named none."""
    FORGOTTEN = "forgotten"
    """The log tells of it, but the result that it would carry is no longer kept."""
    NOT_FOUND = "not_found"


Verdict = Literal["delivered", "again", "given up"]
"""How a try to deliver a webhook ended."""


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One outbox row.

    Args:
        tries, note: how many there were since it was ordered, and what the last one saw.
        round: how often it was ordered again.
        due_at: Unix seconds of the next try; None when it was delivered or given up.
    """

    job_id: str
    url: str
    tries: int
    note: str
    round: int = 0
    due_at: float | None = None
    is_delivered: bool = False


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What one try saw: an HTTP status, or none and in the note why."""

    is_delivered: bool
    note: str
    http_status: int | None = None
    duration_s: float = 0.0

    def as_try(self, job_id: str, now: float, next_in_s: float | None) -> WebhookTry:
        """The log's entry for a try that ended just now."""
        verdict: Verdict = "delivered" if self.is_delivered else "given up" if next_in_s is None else "again"
        return WebhookTry(job_id, now - self.duration_s, self.duration_s, self.http_status, self.note, verdict)


@dataclass(frozen=True, slots=True)
class WebhookTry:
    """One line of the delivery log. `began_at` is in Unix seconds of the store's clock."""

    job_id: str
    began_at: float
    duration_s: float
    http_status: int | None
    note: str
    verdict: Verdict
