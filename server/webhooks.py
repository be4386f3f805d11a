"""Delivers the outbox: every ended job that named a webhook is posted there, signed, until it is taken or given up.

A delivery that was under way when the server stopped is made again: receivers see each end at least once. Nothing
here touches generation: deliveries run beside it, and a receiver that hangs delays nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import orjson

from server.areas import Area
from server.outgoing import ForbiddenAddressError
from server.outputs import absolute
from server.signing import Signer
from server.store.base import Job, JobStatus, Store, WebhookDelivery

logger = logging.getLogger("fluxserve.webhooks")

TIMEOUT_S = 15.0
PAUSES_S = (15.0, 45.0, 120.0, 240.0, 480.0, 900.0, 1200.0, 1800.0, 2400.0)
"""Between ten tries: two hours together."""

POLL_S = 0.5
AT_ONCE = 100
"""Deliveries under way at the same time."""


class Webhooks:
    """The outbox's postman.

    Args: client: makes the calls, to vetted addresses.
    """

    def __init__(self, store: Store, signer: Signer, client: httpx.AsyncClient) -> None:
        self._store = store
        self._signer = signer
        self._client = client
        self._under_way: dict[str, asyncio.Task[None]] = {}

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
        """Start what is due and not under way."""
        for delivery in self._store.due_webhooks(len(self._under_way) + AT_ONCE):
            if len(self._under_way) >= AT_ONCE:
                return
            if delivery.job_id not in self._under_way:
                self._under_way[delivery.job_id] = asyncio.create_task(self._deliver(delivery))

    async def _deliver(self, delivery: WebhookDelivery) -> None:
        try:
            await self._try(delivery)
        finally:
            del self._under_way[delivery.job_id]

    async def _try(self, delivery: WebhookDelivery) -> None:
        job = self._store.get(delivery.job_id)
        if job is None or job.outcome is None:
            return
        is_delivered, is_final, note = await self._post(delivery.url, job)
        has_tries_left = delivery.tries < len(PAUSES_S)
        next_in_s = PAUSES_S[delivery.tries] if has_tries_left and not is_delivered and not is_final else None
        what = "delivered" if is_delivered else "given up" if next_in_s is None else f"again in {next_in_s:g} s"
        logger.info("webhook of request %s, try %d: %s, %s", job.id, delivery.tries + 1, note, what)
        try:
            await asyncio.to_thread(self._store.settle_webhook, job.id, is_delivered, next_in_s, note)
        except Exception:
            logger.exception("webhook of request %s: the try cannot be recorded; it will be made again", job.id)

    async def _post(self, url: str, job: Job) -> tuple[bool, bool, str]:
        """(delivered, final, note) of one try. 2xx is delivered; a redirect or a forbidden address is final."""
        body = _encoded(payload(job))
        headers = {"content-type": "application/json", **self._signer.headers(job.id, body, time.time())}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except TimeoutError:
            return False, False, "no answer in time"
        except ForbiddenAddressError as exc:
            return False, True, str(exc)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            return False, False, f"{type(exc).__name__}: {exc}"[:200]
        return 200 <= status < 300, 300 <= status < 400, f"HTTP {status}"


def payload(job: Job) -> dict[str, Any]:
    """What is posted for an ended job: the body of its result, as its caller would fetch it."""
    assert job.outcome is not None
    origin = job.base_url.removesuffix(f"/{Area.QUEUE}")
    body: dict[str, Any] = {
        "request_id": job.id,
        "gateway_request_id": job.id,
        "status": "OK" if job.status is JobStatus.COMPLETED else "ERROR",
        "payload": absolute(job.outcome.body, origin),
    }
    if job.status is not JobStatus.COMPLETED:
        body["error"] = f"Invalid status code: {job.outcome.http_status}"
    return body


def _encoded(body: dict[str, Any]) -> bytes:
    """The payload as JSON. An output that has no JSON form (half a character) is left out, and said to be."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return orjson.dumps(body | {"payload": None, "payload_error": "The output is not JSON"})
