"""A whole node whose files lie in a bucket: pictures wait while it is away, and go in when it is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.jobs.store.job import Job, JobStatus
from tests.server.jobs.test_dispatcher import ended, make_node, messages, running, submit
from tests.server.s3_service import S3Service
from tests.server.workers.test_process import until


def test_what_is_drawn_while_the_bucket_is_away_waits_and_is_not_drawn_again(tmp_path: Path, s3: S3Service) -> None:
    url = s3.new_url()

    async def main() -> tuple[Job, Job, list[bytes | None]]:
        async with running(tmp_path, objects=url, s3_endpoint=s3.endpoint, result_cache=True) as node:
            await ended(node, submit(node, "a blue square"))
            with s3.away():
                drawn = submit(node)
                await until(lambda: not node.ready)
                health = node.health()
                assert health["state"] == "unwritable"
                assert health["problems"][0].startswith(f"{url} at ")
                queued = submit(node, "a blue square")  # what was drawn before, too, can wait
                await asyncio.sleep(0.3)
                states = [node.store.get(job_id) for job_id in (drawn, queued)]
                assert [(job.status, job.attempt) for job in states if job] == [
                    (JobStatus.RUNNING, 1),
                    (JobStatus.QUEUED, 0),
                ]
            jobs = [await ended(node, job_id) for job_id in (drawn, queued)]
            assert all(job.outcome is not None for job in jobs)
            keys = [job.outcome.body["images"][0]["file_name"] for job in jobs if job.outcome]
            await until(lambda: node.ready)
            return *jobs, [node.objects.read(key) for key in keys]

    drawn, queued, pictures = asyncio.run(main())
    assert [job.status for job in (drawn, queued)] == [JobStatus.COMPLETED] * 2
    assert [job.attempt for job in (drawn, queued)] == [1, 1]
    assert messages(drawn).count("started") == 1
    assert all(picture is not None and picture.startswith(b"\x89PNG") for picture in pictures)


def test_a_node_starts_while_the_bucket_is_away(tmp_path: Path, s3: S3Service) -> None:
    async def main() -> None:
        node = make_node(tmp_path, objects=s3.new_url(), s3_endpoint=s3.endpoint)
        with s3.away():
            await node.start()
            await until(lambda: bool(node.workers.ready))
            assert not node.ready
        await until(lambda: node.ready)
        await node.stop(drain_s=0.0)

    asyncio.run(main())
