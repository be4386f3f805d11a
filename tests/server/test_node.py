"""The node as the routes see it: what it says of itself, what survives a restart, and who hears of an end."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import server.files.disk
from models.arguments import UnknownModelError
from models.registry import REGISTRY
from pipelines.protocol.params import GenerationParams
from server.api.endpoints import ENDPOINTS
from server.files import picture_pool
from server.jobs.service import ServerStoppingError
from server.jobs.store.errors import DiskRefusedError, QueueFullError, StoreError
from server.jobs.store.job import CancelOutcome, Job, JobStatus
from server.jobs.store.nodes import NodeReport
from server.node import Node
from server.settings import Settings
from tests.server.jobs.test_dispatcher import ended, make_node, running, submit
from tests.server.stores import DONE, REJECTED, new_job
from tests.server.workers.test_process import until

SMALL = GenerationParams("flux-shapes", "a circle", 16, 8, num_inference_steps=3, guidance_scale=1.0, seed=1).to_dict()
ROOT = Path(__file__).parents[2]


def test_importing_the_node_leaves_torch_out() -> None:
    program = "import sys, server.node; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_health_follows_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_LOAD_S", "0.3")

    async def main() -> None:
        node = make_node(tmp_path)
        assert (node.ready, node.health()["state"]) == (False, "starting")
        await node.start()
        await until(lambda: node.health()["state"] == "loading")
        (worker,) = node.health()["workers"]
        assert (worker["stage"], worker["fraction"], worker["model"]) == ("weights", 0.5, "flux-shapes")
        await until(lambda: node.ready)
        health = node.health()
        assert (health["state"], health["ready"], health["has_safety_checker"]) == ("ready", True, True)
        assert [model["name"] for model in health["models"]] == ["flux-shapes"]
        assert health["queue"] == {"queued": 0, "running": 0}
        await node.stop()
        assert (node.ready, node.health()["state"]) == (False, "stopping")

    asyncio.run(main())


def test_a_disk_that_refuses_makes_the_node_unready_until_it_takes_writes(tmp_path: Path) -> None:
    """The kernel refuses this process's writes beyond a kilobyte, as on a full disk, or under a quota."""

    async def main() -> None:
        async with running(tmp_path) as node:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
            try:
                with pytest.raises(StoreError):
                    node.jobs.submit(new_job())
                assert (node.ready, node.health()["state"], node.health()["ready"]) == (False, "unwritable", False)
                await asyncio.to_thread(node.disk.probe)
                assert not node.ready
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            await until(lambda: node.ready)
            assert node.health()["state"] == "ready"
            assert node.jobs.submit(new_job()).status is JobStatus.QUEUED

    asyncio.run(main())


def test_too_little_room_is_seen_before_a_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(tmp_path) as node:
            with monkeypatch.context() as patch:
                patch.setattr(server.files.disk, "MIN_FREE_BYTES", 1 << 60)
                await until(lambda: not node.ready)
                assert node.health()["state"] == "unwritable"
            await until(lambda: node.ready)

    asyncio.run(main())


def test_a_folder_of_pictures_that_refuses_is_told_and_nothing_is_drawn_meanwhile(tmp_path: Path) -> None:
    async def main() -> list[int]:
        async with running(tmp_path) as node:
            files = tmp_path / "files"
            files.rename(tmp_path / "elsewhere")
            await until(lambda: not node.ready)
            assert node.health()["state"] == "unwritable"
            assert node.health()["problems"] == [f"{files} takes no writes: the folder is missing"]
            with pytest.raises(DiskRefusedError, match="the folder is missing"):
                node.jobs.submit(new_job())
            waiting = node.store.enqueue(new_job(params=SMALL)).id  # as one that was accepted just before
            node.dispatcher.wake()
            await asyncio.sleep(0.5)
            job = node.store.get(waiting)
            assert job is not None
            assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)
            (tmp_path / "elsewhere").rename(files)
            done = await ended(node, waiting)
            return [done.attempt, done.outcome.http_status if done.outcome else 0]

    assert asyncio.run(main()) == [1, 200]


def test_a_folder_of_pictures_that_takes_none_is_seen_at_the_start(tmp_path: Path) -> None:
    """Seen by a write: the folder is there, and its owner may write, and the disk has room."""

    async def main() -> None:
        node = make_node(tmp_path)
        (tmp_path / "files" / "disk-probe").mkdir()
        await node.start()
        await until(lambda: bool(node.workers.ready))
        assert (node.ready, node.health()["state"]) == (False, "unwritable")
        (tmp_path / "files" / "disk-probe").rmdir()
        await until(lambda: node.ready)
        await node.stop(0.0)

    asyncio.run(main())


def test_without_an_encoder_the_node_is_not_ready_and_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without /dev/shm, where no semaphore can be made."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    async def main() -> tuple[int, str]:
        with monkeypatch.context() as without:
            without.setattr(picture_pool, "ProcessPoolExecutor", refuse)
            without.setattr(multiprocessing.get_context("fork"), "Lock", refuse)
            node = make_node(tmp_path)
            await node.start()
            await until(lambda: bool(node.workers.ready))
            assert (node.ready, node.health()["state"]) == (False, "cannot_encode")
            assert "/dev/shm" in node.health()["problems"][0]
            waiting = submit(node)
            await asyncio.sleep(1.5)
            assert not node.ready
        done = await ended(node, waiting)
        await node.stop(0.0)
        return done.attempt, done.status

    assert asyncio.run(main()) == (1, JobStatus.COMPLETED)


def test_a_full_queue_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    node = make_node(tmp_path, max_queue=0)
    with pytest.raises(QueueFullError):
        node.jobs.submit(new_job())
    assert node.disk.is_writable
    node.store.close()


def test_the_queue_has_the_smaller_of_both_limits(tmp_path: Path) -> None:
    node = make_node(tmp_path, max_queue=2)
    node.jobs.submit(new_job(), max_queued=1)
    with pytest.raises(QueueFullError):
        node.jobs.submit(new_job(), max_queued=1)
    node.jobs.submit(new_job(), max_queued=100)
    with pytest.raises(QueueFullError):
        node.jobs.submit(new_job())
    node.store.close()


def test_a_second_node_on_the_same_folder_is_refused_and_the_first_lives(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with pytest.raises(StoreError, match="another fluxserve"):
        make_node(tmp_path)
    assert node.jobs.submit(new_job()).status is JobStatus.QUEUED
    node.store.close()


def test_an_unknown_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(UnknownModelError, match="unknown model 'nonsense'"):
        Node.from_settings(Settings(data_dir=folder, models=("nonsense",), device="cpu"))
    assert not folder.exists()


def test_the_model_for_an_endpoint_is_the_first_that_matches(tmp_path: Path) -> None:
    node = make_node(tmp_path, models=("FLUX.1-dev", "FLUX.1-schnell"))
    assert node.served.model_for(("schnell",), None) is REGISTRY["FLUX.1-schnell"]
    assert node.served.model_for(("dev", "schnell"), None) is REGISTRY["FLUX.1-dev"]
    assert node.served.model_for(ENDPOINTS["fal-ai/flux/krea"].variants, 28) is REGISTRY["FLUX.1-dev"]
    node.store.close()


def test_a_waiting_request_is_cancelled_without_a_worker(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    job = node.jobs.submit(new_job())
    seen = node.live.version(job.id)
    assert node.jobs.cancel(job.id) is CancelOutcome.CANCELLED
    assert node.live.version(job.id) != seen
    assert node.jobs.cancel(job.id) is CancelOutcome.ALREADY_FINISHED
    assert node.jobs.cancel("nobody") is CancelOutcome.NOT_FOUND
    node.store.close()


def test_waiting_for_an_end_has_a_limit(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    job = node.jobs.submit(new_job())

    async def main() -> None:
        started = time.monotonic()
        assert await node.jobs.wait_finished(job.id, 0.1) is None
        assert 0.1 <= time.monotonic() - started < 2
        assert await node.jobs.wait_finished("nobody", 5) is None

    asyncio.run(main())
    node.store.close()


def test_the_shown_log_is_the_recorded_one_once_there_is_one(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    job = node.jobs.submit(new_job())
    node.live.log(job.id, "live")
    assert [entry["message"] for entry in node.jobs.logs(job.id, job.outcome)] == ["live"]
    (claimed,) = node.store.claim("w1", 1, 30.0)
    node.store.finish(job.id, "w1", claimed.epoch, DONE)
    done = node.store.get(job.id)
    assert done is not None
    assert node.jobs.logs(done.id, done.outcome) == DONE.logs
    node.store.close()


def test_a_restart_takes_up_what_was_left(tmp_path: Path) -> None:
    """The store is left as a kill -9 leaves it: a claim that nobody will end, a waiting job, an open run."""
    left = make_node(tmp_path)
    claimed, waiting = submit(left), submit(left)
    run = submit(left, is_ephemeral=True)
    assert len(left.store.claim("an-owner-of-the-past", 1, 30.0)) == 1
    left.store.close()

    async def main() -> list[JobStatus]:
        async with running(tmp_path) as node:
            return [(await ended(node, job_id)).status for job_id in (claimed, waiting, run)]

    assert asyncio.run(main()) == [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.CANCELLED]


def test_a_clock_that_is_ahead_at_a_start_sweeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = make_node(tmp_path)
    job_id = left.jobs.submit(new_job(params=None, outcome=REJECTED)).id
    key = left.objects.put(b"x", "image/png", "png", ttl_s=60)
    left.store.close()
    ahead = time.time() + 30 * 86400

    async def main() -> None:
        with monkeypatch.context() as wrong:
            wrong.setattr(time, "time", lambda: ahead)
            node = make_node(tmp_path)
        await node.start()
        await until(lambda: node.ready)
        await asyncio.sleep(0.3)
        assert node.store.get(job_id) is not None
        await node.stop(0.0)

    asyncio.run(main())
    assert (tmp_path / "files" / key).exists()


def test_a_second_signal_ends_a_drain(tmp_path: Path) -> None:
    async def main() -> JobStatus | None:
        async with running(tmp_path) as node:
            job_id = submit(node, params={"num_inference_steps": 1_000_000})
            await until(lambda: node.live.progress(job_id) is not None)
            node.announce_stop()
            assert (node.ready, node.health()["state"]) == (False, "stopping")
            stopping = asyncio.create_task(node.stop(drain_s=1e6))
            await asyncio.sleep(0.1)
            assert not stopping.done()
            node.announce_stop(is_forced=True)
            await stopping
        node = make_node(tmp_path)
        job = node.store.get(job_id)
        node.store.close()
        return job.status if job else None

    assert asyncio.run(main()) is JobStatus.QUEUED


def test_a_run_on_an_open_connection_is_told_of_a_stop_and_cancelled(tmp_path: Path) -> None:
    async def main() -> JobStatus | None:
        async with running(tmp_path) as node:
            new = new_job(is_ephemeral=True)
            run = asyncio.create_task(node.jobs.run(new))
            await until(lambda: node.store.get(new.id) is not None)
            node.announce_stop(is_forced=True)
            with pytest.raises(ServerStoppingError):
                await run
            await node.jobs.wait_finished(new.id, 10)
            job = node.store.get(new.id)
            return job.status if job else None

    assert asyncio.run(main()) is JobStatus.CANCELLED


def test_a_request_whose_model_is_not_served_any_more_is_kept_and_says_so(tmp_path: Path) -> None:
    left = make_node(tmp_path)
    job_id = submit(left)
    gone = left.jobs.submit(new_job(params={"model": "gone"})).id
    left.store.close()

    async def main() -> None:
        async with running(tmp_path) as node:
            assert node.ready
            await ended(node, job_id)
            assert node.health()["unserved"] == {"gone": 1}
            (entry,) = node.jobs.logs(gone, None)
            assert entry["message"] == "waits for the model gone, which is not served now"
            job = node.store.get(gone)
            assert job is not None
            assert job.status is JobStatus.QUEUED

    asyncio.run(main())


def test_a_request_that_another_node_serves_is_not_said_to_wait_in_vain(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    job_id = node.jobs.submit(new_job(params={"model": "theirs"})).id
    node.store.note_node(NodeReport("other", None, "1", "ready", 0.0, models=["theirs"]))

    async def main() -> None:
        await node.start()
        assert (node.health()["unserved"], node.jobs.logs(job_id, None)) == ({}, [])
        assert "flux-shapes" in node.membership.report().models
        await node.stop()

    asyncio.run(main())


def test_a_node_that_keeps_its_files_elsewhere_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = make_node(tmp_path)
    for name, files in (("bucket", "s3://pictures"), ("like us", "a folder"), ("older", "")):
        node.store.note_node(NodeReport(name, None, "1", "ready", 0.0, files=files))

    async def main() -> None:
        await node.start()
        for _ in range(2):
            await node.membership.beat()
        shown = {seen["name"]: seen["files"] for seen in node.health()["nodes"]}
        assert shown == {
            "bucket": "s3://pictures",
            "like us": "a folder",
            "older": "",
            node.membership.name: "a folder",
        }
        await node.stop()

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if "--objects" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("node bucket keeps pictures in s3://pictures and this one in a folder")


def test_a_start_on_a_store_that_cannot_write_serves_what_there_is_and_takes_up_the_rest_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = make_node(tmp_path)
    job_id = submit(left)
    assert len(left.store.claim("an-owner-of-the-past", 1, 30.0)) == 1
    left.store.close()

    async def main() -> JobStatus:
        node = make_node(tmp_path)
        recover, refusals = node.store.recover, [2]

        def refuse() -> list[Any]:
            if refusals[0]:
                refusals[0] -= 1
                raise StoreError("the disk is full")
            return recover()

        monkeypatch.setattr(node.store, "recover", refuse)
        await node.start()
        await until(lambda: bool(node.workers.ready))
        assert not node.ready
        assert node.store.get(job_id) is not None
        job = await ended(node, job_id)
        await node.stop(0.0)
        return job.status

    assert asyncio.run(main()) is JobStatus.COMPLETED


def test_a_start_deadline_ends_a_request_that_no_worker_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_LOAD_S", "30")

    async def main() -> tuple[int, str | None]:
        node = make_node(tmp_path)
        await node.start()
        job = await ended(node, submit(node, start_within_s=0.2))
        await node.stop(0.0)
        assert job.outcome is not None
        return job.outcome.http_status, job.outcome.error_type

    assert asyncio.run(main()) == (504, "request_timeout")


def test_who_waits_reads_the_row_only_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node(tmp_path)
    job_id = node.jobs.submit(new_job()).id
    reads: list[str] = []
    get = node.store.get

    def reading(of: str) -> Job | None:
        reads.append(of)
        return get(of)

    monkeypatch.setattr(node.store, "get", reading)

    async def main() -> None:
        waiting = asyncio.create_task(node.jobs.wait_finished(job_id, 20))
        for line in "abc":
            await asyncio.sleep(0.01)
            node.live.log(job_id, line)
        assert reads == []
        node.jobs.cancel(job_id)
        job = await waiting
        assert job is not None
        assert (job.status, reads) == (JobStatus.CANCELLED, [job_id])

    asyncio.run(main())
    node.store.close()


def test_hundreds_of_watchers_hear_of_the_end(tmp_path: Path) -> None:
    async def main() -> int:
        async with running(tmp_path) as node:
            job_id = submit(node)
            jobs = await asyncio.gather(*(ended(node, job_id) for _ in range(500)))
            return sum(job.status is JobStatus.COMPLETED for job in jobs)

    assert asyncio.run(main()) == 500
