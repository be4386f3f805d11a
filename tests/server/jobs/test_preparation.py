"""What a job names is fetched between its claim and its worker: beside everything else, once, and cancellably."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from server.jobs import preparation
from server.jobs.preparation import Preparations, Prepared
from server.jobs.store.job import Job, JobStatus, Outcome
from server.node import Node
from tests.server.jobs.test_dispatcher import ended, running, submit
from tests.server.workers.test_process import until

NEEDS = {"format": "png", "needs_inputs": True}


class Fetcher:
    """Stands for the reading of pictures: waits at a gate, fails as often as it is told, and counts."""

    def __init__(self, fails: int = 0) -> None:
        self.gate = asyncio.Event()
        self.asked: list[str] = []
        self.fails = fails

    async def __call__(self, job: Job) -> Prepared | Outcome:
        self.asked.append(job.id)
        if self.fails:
            self.fails -= 1
            raise OSError("a fault of ours")
        await self.gate.wait()
        assert job.params is not None
        return Prepared(job.params | {"width": 24}, [{"width": 1, "height": 1, "channels": 3, "pixels": b"abc"}])


def run(folder: Path, scenario: Callable[[Node, Fetcher], Awaitable[Any]], fails: int = 0) -> Any:
    async def main() -> Any:
        fetcher = Fetcher(fails)
        async with running(folder) as node:
            node.dispatcher._preparations._prepare = fetcher
            return await scenario(node, fetcher)

    return asyncio.run(main())


def test_slow_addresses_keep_no_other_request_waiting(tmp_path: Path) -> None:
    async def scenario(node: Node, fetcher: Fetcher) -> None:
        slow = [submit(node, output=NEEDS) for _ in range(12)]
        await until(lambda: len(fetcher.asked) == len(slow))
        assert (await ended(node, submit(node))).status is JobStatus.COMPLETED
        fetcher.gate.set()
        for job_id in slow:
            outcome = (await ended(node, job_id)).outcome
            assert outcome is not None
            assert outcome.body["images"][0]["width"] == 24

    run(tmp_path, scenario)


def test_slow_addresses_of_one_key_leave_room_for_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.dispatcher.MAX_PREPARING", 8)

    async def scenario(node: Node, fetcher: Fetcher) -> None:
        flood = [submit(node, output=NEEDS, tenant="flood") for _ in range(12)]
        await until(lambda: len(fetcher.asked) >= 4)
        other = submit(node, output=NEEDS, tenant="other")
        await until(lambda: other in fetcher.asked)
        fetcher.gate.set()
        for job_id in (*flood, other):
            assert (await ended(node, job_id)).status is JobStatus.COMPLETED

    run(tmp_path, scenario)


def test_a_cancel_reaches_what_is_being_fetched(tmp_path: Path) -> None:
    async def scenario(node: Node, fetcher: Fetcher) -> Job:
        job_id = submit(node, output=NEEDS)
        await until(lambda: fetcher.asked == [job_id])
        await asyncio.to_thread(node.jobs.cancel, job_id)
        return await ended(node, job_id)

    assert run(tmp_path, scenario).status is JobStatus.CANCELLED


def test_a_start_deadline_holds_while_something_is_fetched(tmp_path: Path) -> None:
    async def scenario(node: Node, fetcher: Fetcher) -> Job:
        return await ended(node, submit(node, output=NEEDS, start_within_s=0.5))

    outcome = run(tmp_path, scenario).outcome
    assert (outcome.http_status, outcome.error_type) == (504, "request_timeout")


def test_a_retry_fetches_nothing_twice(tmp_path: Path) -> None:
    async def scenario(node: Node, fetcher: Fetcher) -> tuple[Job, int]:
        fetcher.gate.set()
        job = await ended(node, submit(node, "crash once", output=NEEDS))
        return job, len(fetcher.asked)

    job, times = run(tmp_path, scenario)
    assert (job.status, job.attempt, times) == (JobStatus.COMPLETED, 2, 1)


def test_a_fault_of_ours_lets_the_request_run_again(tmp_path: Path) -> None:
    async def scenario(node: Node, fetcher: Fetcher) -> Job:
        fetcher.gate.set()
        return await ended(node, submit(node, output=NEEDS))

    job = run(tmp_path, scenario, fails=1)
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)


def test_what_is_kept_for_retries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "KEPT_BYTES", 5)

    async def unused(job: Job) -> Prepared | Outcome:
        raise AssertionError(job)

    kept = Preparations(unused)
    for name in ("a", "b"):
        kept._keep(name, Prepared({}, [{"pixels": b"abc"}]))
    assert list(kept._kept) == ["b"]
    kept._keep("c", Prepared({}, [{"pixels": b"ab"}]))
    assert list(kept._kept) == ["b", "c"], "together they fit exactly"
    kept.forget("b")
    kept.forget("c")
    assert not kept._kept
