"""The steps of one job while it runs, for answers that show them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from pipelines.protocol.frames import Progress
from server.jobs.live import LiveJobs
from server.jobs.store.job import Outcome


async def steps(live: LiveJobs, job_id: str, end: asyncio.Future[Outcome]) -> AsyncGenerator[Progress, None]:
    """Every step that is seen, once, until `end` is there."""
    last_step = -1
    while not end.done():
        seen = live.version(job_id)
        progress = live.progress(job_id)
        if progress is not None and progress.step != last_step:
            last_step = progress.step
            yield progress
        watch = asyncio.ensure_future(live.wait(job_id, seen, None))
        either: set[asyncio.Future[Any]] = {watch, end}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
