"""Sends the outbox: every ended job that named a webhook is posted there, signed, until it is accepted or given up.

A delivery that was under way when the server stopped is made again: receivers see each end at least once.
Deliveries run beside generation, and a receiver that hangs delays no other. Every try goes into
the store's delivery log, which `fluxserve webhooks` shows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import orjson

from server.http.outgoing import ForbiddenAddressError, split_credentials
from server.jobs.receivers import AT_ONCE_PER_RECEIVER, Receivers, receiver_of
from server.jobs.signing import Signer
from server.jobs.store.base import Store
from server.jobs.store.deliveries import LONGEST_PAUSE_S, WebhookAnswer, WebhookDelivery
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job

logger = logging.getLogger("fluxserve.webhooks")

TIMEOUT_S = 15.0
PAUSES_S = (15.0, 45.0, 120.0, 240.0, 480.0, 900.0, 1200.0, 1800.0, LONGEST_PAUSE_S)
"""Between ten tries: two hours together."""

POLL_S = 0.5
PAUSE_S = 0.02
"""Between two looks at the outbox, when a place has become free."""
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
        self._receivers = Receivers()
        self._has_ended = asyncio.Event()

    async def run(self) -> None:
        """Deliver until cancelled."""
        is_told = False  # a store that is away stays so for many looks
        try:
            while True:
                try:
                    await self._begin_due()
                    is_told = False
                except StoreError as exc:
                    if not is_told:
                        logger.error("the outbox cannot be read, it will be tried again: %s", exc)
                    is_told = True
                except Exception:
                    logger.exception("the outbox cannot be read; it will be tried again")
                await asyncio.sleep(PAUSE_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._has_ended.wait(), POLL_S)
                self._has_ended.clear()
        finally:
            under_way = list(self._under_way.values())
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._client.aclose()

    async def _begin_due(self) -> None:
        """Start what is due and not under way, as far as there is room in all and at its receiver."""
        # Of those that end during the look, it may still say that they are due: the next look knows.
        under_way = set(self._under_way)
        for delivery in await asyncio.to_thread(self._store.due_webhooks, WINDOW, AT_ONCE_PER_RECEIVER):
            if self._receivers.is_full:
                return
            receiver = receiver_of(delivery.url)
            if delivery.job_id not in under_way and self._receivers.has_room(receiver):
                self._receivers.begin(receiver)
                self._under_way[delivery.job_id] = asyncio.create_task(self._deliver(delivery, receiver))

    async def _deliver(self, delivery: WebhookDelivery, receiver: str) -> None:
        has_answered = False
        try:
            has_answered = await self._try(delivery)
        except StoreError as exc:
            logger.error("webhook of request %s waits for the store: %s", delivery.job_id, exc)
        finally:
            del self._under_way[delivery.job_id]
            self._receivers.end(receiver, has_answered)
            self._has_ended.set()

    async def _try(self, delivery: WebhookDelivery) -> bool:
        """Try once and record it; whether the receiver answered."""
        job = await asyncio.to_thread(self._store.get, delivery.job_id)
        if job is None or job.outcome is None:
            return False
        try:
            answer, is_final = await self._post(delivery.url, job)
        except Exception as exc:
            # Whatever it is: it costs this delivery a try, and is not repeated at once for ever.
            logger.exception("webhook of request %s: a fault of ours", job.id)
            answer, is_final = WebhookAnswer(False, f"{type(exc).__name__} in the server"), False
        next_in_s = None if answer.is_delivered or is_final else pause_after(delivery.tries + 1)
        what = "delivered" if answer.is_delivered else "given up" if next_in_s is None else f"again in {next_in_s:g} s"
        logger.info("webhook of request %s, try %d: %s, %s", job.id, delivery.tries + 1, answer.note, what)
        try:
            await asyncio.to_thread(self._store.settle_webhook, delivery, answer, next_in_s)
        except StoreError as exc:
            logger.error("webhook of request %s: the try cannot be recorded, it will be made again: %s", job.id, exc)
        except Exception:
            logger.exception("webhook of request %s: the try cannot be recorded; it will be made again", job.id)
        return answer.http_status is not None

    async def _post(self, url: str, job: Job) -> tuple[WebhookAnswer, bool]:
        """What one try saw, and whether it is final when it is not delivered: a redirect is, and an address that is
        forbidden or malformed."""
        body = _encoded(self._body(job))
        headers = {"content-type": "application/json", **self._signer.headers(job.id, body, time.time())}
        began = time.perf_counter()
        status, is_final = None, False
        try:
            address, credentials = split_credentials(url)
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream("POST", address, content=body, headers=headers, auth=credentials) as answer,
            ):
                status = answer.status_code
            note, is_final = f"HTTP {status}", 300 <= status < 400
        except TimeoutError:
            note = "no answer in time"
        except ForbiddenAddressError as exc:
            note, is_final = str(exc), True
        except (httpx.InvalidURL, UnicodeError) as exc:
            note, is_final = f"malformed address: {exc}"[:200], True
        except (httpx.HTTPError, OSError) as exc:
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
