"""Live state of jobs: what watchers see, and that watching is cheap and never misses a change."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta

from pipelines.protocol import Preview, Progress
from server.hub import KEEP_ENDED_S, KEEP_S, MAX_LOG_ENTRIES, Hub
from tests.server.stores import Clock


def test_a_log_entry_has_fals_form() -> None:
    hub = Hub()
    hub.log("a", "worker found")
    hub.step(Progress("a", epoch=1, step=7, num_steps=28))
    first, second = hub.logs("a")
    assert {key: first[key] for key in ("message", "level", "source")} == {
        "message": "worker found",
        "level": "INFO",
        "source": "USER",
    }
    assert second["message"] == "step 7/28"
    stamp = datetime.fromisoformat(first["timestamp"])
    assert stamp.utcoffset() == timedelta(0)
    assert abs(stamp.timestamp() - time.time()) < 5


def test_a_log_is_bounded_and_keeps_the_newest() -> None:
    hub = Hub()
    for number in range(MAX_LOG_ENTRIES + 5):
        hub.log("a", str(number))
    messages = [entry["message"] for entry in hub.logs("a")]
    assert (len(messages), messages[-1]) == (MAX_LOG_ENTRIES, str(MAX_LOG_ENTRIES + 4))


def test_jobs_do_not_see_each_other() -> None:
    hub = Hub()
    hub.log("a", "mine")
    assert (hub.logs("b"), hub.version("b"), hub.progress("b"), hub.preview("b")) == ([], 0, None, None)


def test_progress_and_previews_are_the_latest_until_it_starts_over() -> None:
    hub = Hub()
    for step in (1, 2):
        hub.step(Progress("a", 1, step, 4))
        hub.show(Preview("a", 1, step, index=0, width=1, height=1, pixels=bytes([step] * 3)))
    progress, preview = hub.progress("a"), hub.preview("a")
    assert progress is not None
    assert preview is not None
    assert (progress.step, preview.step) == (2, 2)
    hub.start_over("a")
    assert (hub.progress("a"), hub.preview("a"), len(hub.logs("a"))) == (None, None, 2)


def test_wait_returns_at_once_when_the_change_came_first() -> None:
    async def main() -> int:
        hub = Hub()
        seen = hub.version("a")
        hub.changed("a")
        return await asyncio.wait_for(hub.wait("a", seen, None), 1)

    assert asyncio.run(main()) != 0


def test_wait_ends_at_the_timeout_with_the_same_version() -> None:
    async def main() -> tuple[int, int]:
        hub = Hub()
        hub.changed("a")
        seen = hub.version("a")
        return seen, await hub.wait("a", seen, 0.01)

    seen, after = asyncio.run(main())
    assert seen == after


def test_a_change_from_another_thread_wakes_a_watcher() -> None:
    async def main() -> float:
        hub = Hub()
        waiter = asyncio.create_task(hub.wait("a", 0, 5))
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        thread = threading.Thread(target=hub.changed, args=("a",))
        thread.start()
        await waiter
        thread.join()
        return time.perf_counter() - started

    assert asyncio.run(main()) < 1


def test_a_thousand_watchers_of_one_job_each_see_every_last_state() -> None:
    async def main() -> tuple[list[int], float]:
        hub = Hub()

        async def watch() -> int:
            seen = 0
            while len(hub.logs("a")) < 20:
                seen = await hub.wait("a", seen, 10)
            return len(hub.logs("a"))

        watchers = [asyncio.create_task(watch()) for _ in range(1000)]
        await asyncio.sleep(0)
        busy_from = time.process_time()
        for step in range(20):
            hub.log("a", str(step))
            await asyncio.sleep(0)
        ends = await asyncio.gather(*watchers)
        return ends, time.process_time() - busy_from

    ends, busy_s = asyncio.run(main())
    assert ends == [20] * 1000
    assert busy_s < 10


def test_a_cancelled_watcher_leaves_nothing_behind() -> None:
    clock = Clock()
    hub = Hub(clock)

    async def main() -> None:
        waiter = asyncio.create_task(hub.wait("a", 0, None))
        await asyncio.sleep(0)
        clock.advance(KEEP_S + 1)
        hub.forget_old()
        assert "a" in hub._jobs, "a watched job is kept"
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        hub.forget_old()
        assert "a" not in hub._jobs

    asyncio.run(main())


def test_a_job_that_has_ended_is_soon_forgotten() -> None:
    clock = Clock()
    hub = Hub(clock)
    hub.log("over", "x")
    hub.log("still running", "x")
    seen = hub.version("over")
    hub.ended("over")
    assert (hub.version("over") != seen, len(hub.logs("over"))) == (True, 1)
    clock.advance(KEEP_ENDED_S + 1)
    hub.forget_old()
    assert (hub.logs("over"), len(hub.logs("still running"))) == ([], 1)


def test_old_jobs_are_forgotten() -> None:
    clock = Clock()
    hub = Hub(clock)
    hub.log("old", "x")
    clock.advance(KEEP_S)
    hub.log("new", "x")
    clock.advance(1)
    hub.forget_old()
    assert (hub.logs("old"), len(hub.logs("new"))) == ([], 1)
