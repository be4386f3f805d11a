"""Sends the outbox: every ended job that named a webhook is posted there, signed, until it is accepted or given up.

A delivery that was under way when the server stopped is made again: receivers see each end at least once.
Deliveries run beside generation, and a receiver that hangs delays no other. Every try goes into
the store's delivery log, which `fluxserve webhooks` shows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from server.http.outgoing import ForbiddenAddressError
from server.jobs.signing import Signer
from server.jobs.store.base import Job, Store, WebhookAnswer, WebhookDelivery

logger = logging.getLogger("fluxserve.webhooks")

TIMEOUT_S = 15.0
PAUSES_S = (15.0, 45.0, 120.0, 240.0, 480.0, 900.0, 1200.0, 1800.0, 2400.0)
"""Between ten tries: two hours together."""

POLL_S = 0.5
AT_ONCE = 100
"""Deliveries under way at the same time."""
AT_ONCE_PER_RECEIVER = 20
"""Of them to one host and port, so that a receiver that hangs cannot hold them all."""
WINDOW = 1000
"""Due deliveries that are looked at for ones whose receiver has room."""


class Webhooks:
    """Sends what is due in the outbox.

    Args: client: makes the calls, to vetted addresses. body: what is posted for an ended job.
    """

    def __init__(
        self, store: Store, signer: Signer, client: httpx.AsyncClient, body: Callable[[Job], dict[str, Any]]
    ) -> None:
        self._store = store
        self._signer = signer
        self._client = client
        self._body = body
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[str] = Counter()

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                try:
                    self._begin_due()
                except Exception:
                    logger.exception("the outbox cannot be read; it will be tried again")
                await asyncio.sleep(POLL_S)
        finally:
            under_way = list(self._under_way.values())
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._client.aclose()

    def _begin_due(self) -> None:
        """Start what is due and not under way, as far as there is room in all and at its receiver."""
        for delivery in self._store.due_webhooks(WINDOW):
            if len(self._under_way) >= AT_ONCE:
                return
            receiver = urlsplit(delivery.url).netloc
            if delivery.job_id not in self._under_way and self._busy[receiver] < AT_ONCE_PER_RECEIVER:
                self._busy[receiver] += 1
                self._under_way[delivery.job_id] = asyncio.create_task(self._deliver(delivery, receiver))

    async def _deliver(self, delivery: WebhookDelivery, receiver: str) -> None:
        try:
            await self._try(delivery)
        finally:
            del self._under_way[delivery.job_id]
            self._busy[receiver] -= 1
            self._busy += Counter()  # forgets receivers with nothing under way

    async def _try(self, delivery: WebhookDelivery) -> None:
        job = self._store.get(delivery.job_id)
        if job is None or job.outcome is None:
            return
        answer, is_final = await self._post(delivery.url, job)
        next_in_s = None if answer.is_delivered or is_final else pause_after(delivery.tries + 1)
        what = "delivered" if answer.is_delivered else "given up" if next_in_s is None else f"again in {next_in_s:g} s"
        logger.info("webhook of request %s, try %d: %s, %s", job.id, delivery.tries + 1, answer.note, what)
        try:
            await asyncio.to_thread(self._store.settle_webhook, delivery, answer, next_in_s)
        except Exception:
            logger.exception("webhook of request %s: the try cannot be recorded; it will be made again", job.id)

    async def _post(self, url: str, job: Job) -> tuple[WebhookAnswer, bool]:
        """What one try saw, and whether it is final: a redirect and a forbidden address are, when not delivered."""
        body = _encoded(self._body(job))
        headers = {"content-type": "application/json", **self._signer.headers(job.id, body, time.time())}
        began = time.perf_counter()
        status, is_final = None, False
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
            note, is_final = f"HTTP {status}", 300 <= status < 400
        except TimeoutError:
            note = "no answer in time"
        except ForbiddenAddressError as exc:
            note, is_final = str(exc), True
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            note = f"{type(exc).__name__}: {exc}"[:200]
        is_delivered = status is not None and 200 <= status < 300
        return WebhookAnswer(is_delivered, note, status, time.perf_counter() - began), is_final


def pause_after(tries: int) -> float | None:
    """Seconds from the end of the n-th try to the next, the first being 1; None when that was the last."""
    return PAUSES_S[tries - 1] if tries <= len(PAUSES_S) else None


def _encoded(body: dict[str, Any]) -> bytes:
    """The payload as JSON. An output that has no JSON form (half a character) is left out, and said to be."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return orjson.dumps(body | {"payload": None, "payload_error": "The output is not JSON"})
