"""Live state of jobs: what watchers see, and that watching is cheap and never misses a change."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta

from pipelines.protocol.frames import Preview, Progress
from server.jobs.live import KEEP_ENDED_S, KEEP_S, MAX_LOG_ENTRIES, LiveJobs
from tests.server.stores import Clock


def test_a_log_entry_has_fals_form() -> None:
    live = LiveJobs()
    live.log("a", "worker found")
    live.step(Progress("a", epoch=1, step=7, num_steps=28))
    first, second = live.logs("a")
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
    live = LiveJobs()
    for number in range(MAX_LOG_ENTRIES + 5):
        live.log("a", str(number))
    messages = [entry["message"] for entry in live.logs("a")]
    assert (len(messages), messages[-1]) == (MAX_LOG_ENTRIES, str(MAX_LOG_ENTRIES + 4))


def test_jobs_do_not_see_each_other() -> None:
    live = LiveJobs()
    live.log("a", "mine")
    assert (live.logs("b"), live.version("b"), live.progress("b"), live.preview("b")) == ([], 0, None, None)


def test_progress_and_previews_are_the_latest_until_it_starts_over() -> None:
    live = LiveJobs()
    for step in (1, 2):
        live.step(Progress("a", 1, step, 4))
        live.show(Preview("a", 1, step, index=0, width=1, height=1, pixels=bytes([step] * 3)))
    progress, preview = live.progress("a"), live.preview("a")
    assert progress is not None
    assert preview is not None
    assert (progress.step, preview.step) == (2, 2)
    live.start_over("a")
    assert (live.progress("a"), live.preview("a"), len(live.logs("a"))) == (None, None, 2)


def test_wait_returns_at_once_when_the_change_came_first() -> None:
    async def main() -> int:
        live = LiveJobs()
        seen = live.version("a")
        live.changed("a")
        return await asyncio.wait_for(live.wait("a", seen, None), 1)

    assert asyncio.run(main()) != 0


def test_wait_ends_at_the_timeout_with_the_same_version() -> None:
    async def main() -> tuple[int, int]:
        live = LiveJobs()
        live.changed("a")
        seen = live.version("a")
        return seen, await live.wait("a", seen, 0.01)

    seen, after = asyncio.run(main())
    assert seen == after


def test_a_change_from_another_thread_wakes_a_watcher() -> None:
    async def main() -> float:
        live = LiveJobs()
        waiter = asyncio.create_task(live.wait("a", 0, 5))
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        thread = threading.Thread(target=live.changed, args=("a",))
        thread.start()
        await waiter
        thread.join()
        return time.perf_counter() - started

    assert asyncio.run(main()) < 1


def test_a_thousand_watchers_of_one_job_each_see_every_last_state() -> None:
    async def main() -> tuple[list[int], float]:
        live = LiveJobs()

        async def watch() -> int:
            seen = 0
            while len(live.logs("a")) < 20:
                seen = await live.wait("a", seen, 10)
            return len(live.logs("a"))

        watchers = [asyncio.create_task(watch()) for _ in range(1000)]
        await asyncio.sleep(0)
        busy_from = time.process_time()
        for step in range(20):
            live.log("a", str(step))
            await asyncio.sleep(0)
        ends = await asyncio.gather(*watchers)
        return ends, time.process_time() - busy_from

    ends, busy_s = asyncio.run(main())
    assert ends == [20] * 1000
    assert busy_s < 10


def test_a_cancelled_watcher_leaves_nothing_behind() -> None:
    clock = Clock()
    live = LiveJobs(clock)

    async def main() -> None:
        waiter = asyncio.create_task(live.wait("a", 0, None))
        await asyncio.sleep(0)
        clock.advance(KEEP_S + 1)
        live.forget_old()
        assert "a" in live._jobs, "a watched job is kept"
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        live.forget_old()
        assert "a" not in live._jobs

    asyncio.run(main())


def test_a_job_that_has_ended_is_soon_forgotten() -> None:
    clock = Clock()
    live = LiveJobs(clock)
    live.log("over", "x")
    live.log("still running", "x")
    seen = live.version("over")
    live.ended("over")
    assert (live.version("over") != seen, len(live.logs("over"))) == (True, 1)
    clock.advance(KEEP_ENDED_S + 1)
    live.forget_old()
    assert (live.logs("over"), len(live.logs("still running"))) == ([], 1)


def test_old_jobs_are_forgotten() -> None:
    clock = Clock()
    live = LiveJobs(clock)
    live.log("old", "x")
    clock.advance(KEEP_S)
    live.log("new", "x")
    clock.advance(1)
    live.forget_old()
    assert (live.logs("old"), len(live.logs("new"))) == ([], 1)
