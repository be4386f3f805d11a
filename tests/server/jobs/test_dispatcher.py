"""Requests through a node with real worker processes that follow a script: whatever they do, each job ends once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.protocol.frames import Failed, Finished, Heartbeat, Loading, Picture, Waits
from pipelines.protocol.params import GenerationParams
from server.jobs import dispatcher
from server.jobs.dispatcher import AHEAD
from server.jobs.live import LiveChange
from server.jobs.store.errors import StoreError
from server.jobs.store.job import CancelOutcome, Job, JobStatus
from server.node import Node
from server.settings import Settings
from server.workers.process import Worker
from tests.server.files.test_provenance import IPTC, said
from tests.server.stores import new_job
from tests.server.workers.test_process import COMMAND, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def make_node(folder: Path, **settings: Any) -> Node:
    chosen = Settings(data_dir=folder, device=settings.pop("device", "cpu"), **settings)
    return Node.from_settings(chosen, worker_command=COMMAND)


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Node]:
    node = make_node(folder, **settings)
    await node.start()
    try:
        await until(lambda: node.ready)
        yield node
    finally:
        await node.stop(drain_s=0.0)


def submit(node: Node, prompt: str = "a red circle", output: dict[str, Any] | None = None, **changes: Any) -> str:
    wanted = {"num_inference_steps": 3, "num_images": 1, **changes.pop("params", {})}
    params = GenerationParams(
        model="flux-shapes", prompt=prompt, width=16, height=8, guidance_scale=3.5, seed=41, **wanted
    )
    new = new_job(params=params.to_dict(), output=output or {"format": "png"}, **changes)
    return node.jobs.submit(new).id


async def ended(node: Node, job_id: str, timeout_s: float = 20.0) -> Job:
    job = await node.jobs.wait_finished(job_id, timeout_s)
    assert job is not None, f"{job_id} did not end"
    return job


def messages(job: Job) -> list[str]:
    assert job.outcome is not None
    return [entry["message"] for entry in job.outcome.logs]


def crashes(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


def test_a_request_becomes_pictures(folder: Path) -> None:
    async def main() -> tuple[Job, list[Path | None]]:
        async with running(folder) as node:
            job = await ended(node, submit(node, params={"num_images": 2}))
            assert job.outcome is not None
            return job, [node.objects.path(image["file_name"]) for image in job.outcome.body["images"]]

    job, paths = asyncio.run(main())
    assert job.outcome is not None
    body = job.outcome.body
    assert (job.status, job.outcome.http_status) == (JobStatus.COMPLETED, 200)
    assert (body["seed"], body["prompt"], body["has_nsfw_concepts"]) == (41, "a red circle", [False, False])
    assert (body["timings"], job.outcome.metrics) == ({"inference": 0.25}, {"inference_time": 0.25})
    assert messages(job) == ["started", "step 1/3", "step 2/3", "step 3/3", "finished in 0.25 s"]
    for path, seed in zip(paths, (41, 42), strict=True):
        assert path is not None
        with Image.open(path) as picture:
            assert (picture.size, picture.getpixel((0, 0))) == ((16, 8), (seed, 0, 0))


def test_who_is_told_of_ends_never_reads_on_the_event_loop(folder: Path) -> None:
    async def scenario() -> list[int]:
        told: list[int] = []
        async with running(folder) as node:
            node.live.on_end(lambda job_id: told.append(threading.get_ident()))
            await ended(node, submit(node))
            await ended(node, submit(node, "crash", max_attempts=1))
            node.store.pause("model", "flux-shapes")
            await ended(node, submit(node, start_within_s=0.1))
        return told

    told = asyncio.run(scenario())
    assert len(told) == 3
    assert threading.get_ident() not in told


def test_who_waits_for_a_model_reads_how_far_it_is_and_loses_no_attempt(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            return await ended(node, submit(node, "load"))

    job = asyncio.run(main())
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 1)
    loading = [f"loading flux-shapes (transformer): {percent} %" for percent in (0, 20, 100)]
    assert messages(job)[:4] == [*loading, "started"]


@pytest.mark.parametrize("is_default", [True, False])
def test_a_file_tells_its_prompt_only_where_asked(folder: Path, is_default: bool) -> None:
    async def main() -> list[dict[str, str]]:
        async with running(folder, embed_parameters=is_default) as node:
            ids = [
                submit(node, output={"format": "png"} | asked) for asked in ({}, {"embed_parameters": not is_default})
            ]
            jobs = [await ended(node, job_id) for job_id in ids]
            return [said(_file(node, job)) | {"id": job.id} for job in jobs]

    default, asked = asyncio.run(main())
    for properties, is_inside in ((default, is_default), (asked, not is_default)):
        assert properties["{http://purl.org/dc/elements/1.1/}identifier"] == properties["id"]
        assert properties.get(f"{IPTC}AIPromptInformation") == ("a red circle" if is_inside else None)
        assert properties.get("{urn:fluxserve:1:}seed") == ("41" if is_inside else None)


def _file(node: Node, job: Job) -> bytes:
    assert job.outcome is not None
    path = node.objects.path(job.outcome.body["images"][0]["file_name"])
    assert path is not None
    return path.read_bytes()


def test_sync_mode_ends_with_a_data_uri_and_no_file(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            return await ended(node, submit(node, output={"format": "jpeg", "sync_mode": True}))

    job = asyncio.run(main())
    assert job.outcome is not None
    assert job.outcome.body["images"][0]["url"].startswith("data:image/jpeg;base64,")
    assert list((folder / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "http_status", "error_type"),
    [("oom", 500, "runner_server_error"), ("deadline", 504, "request_timeout")],
)
def test_a_failure_is_a_request_error_of_fal(folder: Path, prompt: str, http_status: int, error_type: str) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            return await ended(node, submit(node, prompt))

    outcome = asyncio.run(main()).outcome
    assert outcome is not None
    assert (outcome.status, outcome.http_status, outcome.error_type) == (JobStatus.FAILED, http_status, error_type)
    assert outcome.body == {"detail": outcome.error, "error_type": error_type}


def test_a_model_error_has_fals_list_of_details(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            return await ended(node, submit(node, "model error"))

    outcome = asyncio.run(main()).outcome
    assert outcome is not None
    entry = {"loc": ["body"], "msg": "Scripted model error", "type": "internal_server_error"}
    assert (outcome.http_status, outcome.body) == (500, {"detail": [entry]})


def test_an_internal_fault_is_tried_again_until_no_attempt_is_left(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            return await ended(node, submit(node, "internal", max_attempts=2))

    job = asyncio.run(main())
    assert job.outcome is not None
    assert (job.attempt, job.deaths, job.outcome.http_status) == (2, 0, 503)
    assert job.outcome.error_type == "runner_disconnected"


def test_a_crash_in_the_middle_is_only_a_delay(folder: Path) -> None:
    async def main() -> tuple[Job, list[dict[str, Any]]]:
        async with running(folder) as node:
            job = await ended(node, submit(node, "crash once"))
            return job, node.jobs.logs(job.id, job.outcome)

    job, logs = asyncio.run(main())
    assert (job.status, job.attempt, job.deaths, job.lone_deaths) == (JobStatus.COMPLETED, 2, 1, 1)
    said = [entry["message"] for entry in logs]
    assert "the worker stopped; the request will run again" in said
    assert said[-1] == "finished in 0.25 s"


def test_a_hang_in_the_middle_is_only_a_delay(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder, hang_s=0.5) as node:
            return await ended(node, submit(node, "hang once"))

    job = asyncio.run(main())
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)


def test_a_poison_request_ends_and_its_neighbours_survive(folder: Path) -> None:
    async def main() -> tuple[Job, list[Job]]:
        async with running(folder) as node:
            poison = submit(node, "crash", params={"num_inference_steps": 50})
            others = [submit(node, params={"num_inference_steps": 20}) for _ in range(6)]
            return await ended(node, poison), [await ended(node, other) for other in others]

    poison, others = asyncio.run(main())
    assert poison.outcome is not None
    assert (poison.status, poison.outcome.http_status) == (JobStatus.FAILED, 503)
    assert (poison.deaths <= 3, poison.lone_deaths) == (True, 2), "once in company, then alone"
    assert {job.status for job in others} == {JobStatus.COMPLETED}
    assert {job.deaths for job in others} <= {0, 1}


def test_a_suspect_that_no_worker_can_run_holds_up_nobody(folder: Path) -> None:
    node = make_node(folder)
    gone = node.jobs.submit(new_job(params={"model": "gone"}))
    node.store.claim("an-owner-of-the-past", 1, 30.0)
    node.store.release("an-owner-of-the-past", died=True)
    node.store.close()

    async def main() -> tuple[list[Job], Job | None]:
        async with running(folder) as node:
            jobs = [await ended(node, job_id) for job_id in [submit(node) for _ in range(6)]]
            return jobs, node.store.get(gone.id)

    jobs, waiting = asyncio.run(main())
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert waiting is not None
    assert waiting.status is JobStatus.QUEUED


def test_a_running_request_is_cancelled_within_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_STEP_S", "0.05")

    async def main() -> tuple[Job, float]:
        async with running(folder) as node:
            job_id = submit(node, params={"num_inference_steps": 1000})
            await until(lambda: node.live.progress(job_id) is not None)
            asked_at = time.monotonic()
            assert await asyncio.to_thread(node.jobs.cancel, job_id) is CancelOutcome.REQUESTED
            return await ended(node, job_id), time.monotonic() - asked_at

    job, took_s = asyncio.run(main())
    assert job.outcome is not None
    assert (job.status, job.outcome.http_status) == (JobStatus.CANCELLED, 499)
    assert took_s < 4.0, "less than the 5 s after which the lease renewal would have told"
    assert any(message.startswith("cancelled after") for message in messages(job))


def test_a_cancel_during_the_claim_is_not_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag falls between the commit of the claim and the moment the dispatcher hears of it."""
    monkeypatch.setenv("SCRIPTED_STEP_S", "0.05")

    async def main() -> tuple[Job, float]:
        async with running(folder) as node:
            claim = node.store.claim

            def claim_and_cancel(*arguments: Any) -> list[Job]:
                jobs = claim(*arguments)
                for job in jobs:
                    node.jobs.cancel(job.id)
                time.sleep(0.05)
                return jobs

            monkeypatch.setattr(node.store, "claim", claim_and_cancel)
            asked_at = time.monotonic()
            job = await ended(node, submit(node, params={"num_inference_steps": 1000}))
            return job, time.monotonic() - asked_at

    job, took_s = asyncio.run(main())
    assert job.status is JobStatus.CANCELLED
    assert took_s < 4.0


def test_frames_of_an_earlier_claim_are_dropped(folder: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            job_id = submit(node, "zombie")
            job = await ended(node, job_id)
            (worker,) = node.workers
            node.dispatcher.on_frame(worker, Picture(job_id, job.epoch, 0, 1, 1, 1, bytes(3), False))
            node.dispatcher.on_frame(worker, Finished(job_id, job.epoch, {"inference": 99.0}))
            await asyncio.sleep(0.1)
            again = node.store.get(job_id)
            assert again == job
            return job

    job = asyncio.run(main())
    assert job.outcome is not None
    assert len(job.outcome.body["images"]) == 1
    assert job.outcome.metrics == {"inference_time": 0.25}


@pytest.fixture
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: a request "wait NAME" goes on after its first step when a file NAME is in it."""
    folder = tmp_path / "gates"
    folder.mkdir()
    monkeypatch.setenv("SCRIPTED_GATES", str(folder))
    return folder


def test_an_end_of_an_earlier_claim_does_not_end_a_run_that_is_under_way(folder: Path, gates: Path) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            job_id = submit(node, "wait here")
            await until(lambda: node.live.progress(job_id) is not None)
            (worker,), job = node.workers, node.store.get(job_id)
            assert job is not None
            stale = job.epoch - 1
            node.dispatcher.on_frame(worker, Picture(job_id, stale, 0, 99, 1, 1, bytes(3), False))
            node.dispatcher.on_frame(worker, Finished(job_id, stale, {"inference": 99.0}))
            node.dispatcher.on_frame(worker, Failed(job_id, stale, "model_error", "long ago"))
            await asyncio.sleep(0.3)
            job = node.store.get(job_id)
            assert job is not None
            assert job.status is JobStatus.RUNNING
            (gates / "here").touch()
            return await ended(node, job_id)

    job = asyncio.run(main())
    assert job.outcome is not None
    assert (job.status, job.outcome.metrics) == (JobStatus.COMPLETED, {"inference_time": 0.25})
    assert [image["width"] for image in job.outcome.body["images"]] == [16]


def test_a_frame_of_another_worker_does_not_end_a_run(folder: Path, gates: Path) -> None:
    async def main() -> JobStatus:
        async with running(folder, device="cpu,cpu") as node:
            await until(lambda: len(node.workers.ready) == 2)
            job_id = submit(node, "wait here")
            await until(lambda: node.live.progress(job_id) is not None)
            job = node.store.get(job_id)
            assert job is not None
            (other,) = [worker for worker in node.workers if worker.owner != job.owner]
            node.dispatcher.on_frame(other, Failed(job_id, job.epoch, "model_error", "not mine"))
            await asyncio.sleep(0.2)
            (gates / "here").touch()
            return (await ended(node, job_id)).status

    assert asyncio.run(main()) is JobStatus.COMPLETED


def test_what_was_running_when_a_worker_died_runs_alone(folder: Path, gates: Path) -> None:
    """Else two that are suspected of killing workers would hide each other, and an innocent one would die with them."""

    async def main() -> list[Job]:
        async with running(folder) as node:
            suspect = submit(node, "wait suspect")
            await until(lambda: node.live.progress(suspect) is not None)
            (worker,) = node.workers
            crashes(worker)
            await until(lambda: (job := node.store.get(suspect)) is not None and job.attempt == 2)
            innocent = submit(node)
            await asyncio.sleep(0.5)
            waiting = node.store.get(innocent)
            assert waiting is not None
            assert (waiting.status, waiting.attempt) == (JobStatus.QUEUED, 0)
            (gates / "suspect").touch()
            return [await ended(node, job_id) for job_id in (suspect, innocent)]

    jobs = asyncio.run(main())
    assert [job.status for job in jobs] == [JobStatus.COMPLETED] * 2
    assert [job.deaths for job in jobs] == [1, 0]


def test_a_death_counts_for_what_ran_though_another_claim_was_being_committed(
    folder: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what kills workers goes uncounted under a flood of submits, and what was never sent counts in its place."""

    async def main() -> list[Job]:
        async with running(folder) as node:
            poison = submit(node, "wait poison")
            await until(lambda: node.live.progress(poison) is not None)
            (worker,) = node.workers
            claim, restarts = node.store.claim, worker.restarts

            def claim_and_lose_the_worker(*arguments: Any) -> list[Job]:
                jobs = claim(*arguments)
                if jobs and worker.restarts == restarts:
                    crashes(worker)
                    time.sleep(0.3)
                return jobs

            monkeypatch.setattr(node.store, "claim", claim_and_lose_the_worker)
            innocent = submit(node)
            await until(lambda: (job := node.store.get(poison)) is not None and job.attempt == 2)
            (gates / "poison").touch()
            return [await ended(node, job_id) for job_id in (poison, innocent)]

    jobs = asyncio.run(main())
    assert [job.status for job in jobs] == [JobStatus.COMPLETED] * 2
    assert [job.deaths for job in jobs] == [1, 0]


def test_at_a_death_what_is_being_saved_holds_up_nobody_and_is_saved(
    folder: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> list[Job]:
        async with running(folder) as node:
            may_save, deliver = asyncio.Event(), node.outputs.deliver

            async def deliver_late(*arguments: Any) -> dict[str, Any]:
                await may_save.wait()
                return await deliver(*arguments)

            monkeypatch.setattr(node.outputs, "deliver", deliver_late)
            drawn = submit(node)
            await until(lambda: any("finished" in line["message"] for line in node.live.logs(drawn)))
            other = submit(node, "wait other")
            await until(lambda: node.live.progress(other) is not None)
            (worker,) = node.workers
            crashes(worker)
            await until(lambda: (job := node.store.get(other)) is not None and job.deaths == 1)
            may_save.set()
            (gates / "other").touch()
            return [await ended(node, job_id) for job_id in (drawn, other)]

    jobs = asyncio.run(main())
    assert [(job.status, job.attempt) for job in jobs] == [(JobStatus.COMPLETED, 1), (JobStatus.COMPLETED, 2)]
    assert [job.deaths for job in jobs] == [0, 1]


def test_low_priority_yields(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_LOAD_S", "0.3")

    async def main() -> list[Job]:
        node = make_node(folder)
        await node.start()
        low = [submit(node, priority=1) for _ in range(5)]
        normal = [submit(node) for _ in range(5)]
        jobs = [await ended(node, job_id) for job_id in [*low, *normal]]
        await node.stop(0.0)
        return jobs

    jobs = asyncio.run(main())
    assert max(job.started_at or 0 for job in jobs[5:]) <= min(job.started_at or 0 for job in jobs[:5]) + 0.05


def test_leases_are_renewed_and_those_of_strangers_end(
    folder: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RENEW_S", 0.02)
    monkeypatch.setattr(dispatcher, "TEND_S", 0.02)

    async def main() -> Job:
        async with running(folder) as node:
            held = submit(node, "wait gate")
            await until(lambda: node.live.progress(held) is not None)
            first = lease(node, held)
            await until(lambda: lease(node, held) > first)
            node.dispatcher._is_accepting = False
            lost = submit(node)
            (stolen,) = node.store.claim("a stranger", 1, 0.05)
            assert stolen.id == lost
            node.dispatcher._is_accepting = True
            (gates / "gate").touch()
            await ended(node, held)
            return await ended(node, lost)

    job = asyncio.run(main())
    assert (job.status, job.epoch, job.attempt) == (JobStatus.COMPLETED, 2, 1), (
        "the stranger's end is no attempt of the request"
    )


def test_a_cancel_that_only_the_store_knows_of_is_heard_at_the_next_renewal(
    folder: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RENEW_S", 0.02)
    monkeypatch.setattr(dispatcher, "TEND_S", 0.02)

    async def main() -> Job:
        async with running(folder) as node:
            held = submit(node, "wait gate")
            await until(lambda: node.live.progress(held) is not None)
            node.store.request_cancel(held)
            return await ended(node, held)

    assert asyncio.run(main()).status is JobStatus.CANCELLED


def lease(node: Node, job_id: str) -> float:
    job = node.store.get(job_id)
    assert job is not None
    assert job.lease_until is not None
    return job.lease_until


def test_no_more_is_claimed_than_a_worker_may_hold_before_it_begins(folder: Path, gates: Path) -> None:
    async def main() -> list[Job]:
        async with running(folder) as node:
            held = [submit(node, "hold gate") for _ in range(AHEAD + 3)]
            await until(lambda: node.store.counts()[JobStatus.RUNNING] >= AHEAD)
            await asyncio.sleep(0.2)
            assert node.store.counts()[JobStatus.RUNNING] == AHEAD
            (gates / "gate").touch()
            return [await ended(node, job_id) for job_id in held]

    assert {job.status for job in asyncio.run(main())} == {JobStatus.COMPLETED}


def test_who_waits_for_a_model_on_demand_takes_no_room_from_others(folder: Path, gates: Path) -> None:
    async def main() -> tuple[int, int]:
        async with running(folder) as node:
            (worker,) = node.workers
            held = [submit(node, "hold gate") for _ in range(AHEAD)]
            await until(lambda: sum(not run.is_preparing for run in node.dispatcher.runs_of(worker)) == AHEAD)
            full = node.dispatcher._room(worker)
            assert worker.ready is not None
            worker.ready.on_demand.append("flux-shapes")
            worker.heartbeat = Heartbeat(0, 0, 0, 0.0)
            loading = node.dispatcher._room(worker)
            (gates / "gate").touch()
            for job_id in held:
                await ended(node, job_id)
            return full, loading

    assert asyncio.run(main()) == (0, AHEAD)


def test_who_waits_for_what_helps_its_model_takes_no_room_either_and_reads_how_far_it_is(
    folder: Path, gates: Path
) -> None:
    async def main() -> tuple[list[int], list[str]]:
        async with running(folder) as node:
            (worker,) = node.workers
            held = [submit(node, "hold gate") for _ in range(AHEAD)]
            await until(lambda: sum(not run.is_preparing for run in node.dispatcher.runs_of(worker)) == AHEAD)
            rooms = []
            for waits_for in ("a-controlnet", ""):
                (epoch,) = {run.job.epoch for run in node.dispatcher.runs_of(worker) if run.job.id == held[0]}
                node.dispatcher.on_frame(worker, Waits(held[0], epoch, waits_for))
                node.dispatcher.on_frame(worker, Loading("a-controlnet", "begins", 0.0))
                rooms.append(node.dispatcher._room(worker))
            (gates / "gate").touch()
            return rooms, messages(await ended(node, held[0]))

    rooms, lines = asyncio.run(main())
    assert rooms == [1, 0]
    assert lines[:2] == ["waits until a-controlnet is loaded", "loading a-controlnet (begins): 0 %"]
    assert lines[2] == "started", "once"


def test_a_heartbeat_counts_what_was_sent_before_it(folder: Path, gates: Path) -> None:
    """Else a worker would be taken for fuller with every request it was ever given."""

    async def main() -> float:
        async with running(folder) as node:
            (worker,) = node.workers
            held = submit(node, "wait gate")
            await until(lambda: node.live.progress(held) is not None)
            node.dispatcher.on_frame(worker, Heartbeat(0, 1, 0, 500.0))
            worker.heartbeat = Heartbeat(0, 1, 0, 500.0)
            predicted = node.dispatcher._predicted_load_ms(worker)
            (gates / "gate").touch()
            await ended(node, held)
            return predicted

    assert asyncio.run(main()) == 500.0


def test_two_workers_share_what_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_STEP_S", "0.02")
    seen: set[str] = set()

    async def main() -> list[Job]:
        node = make_node(folder, device="cpu,cpu")
        on_frame = node.dispatcher.on_frame

        def spy(worker: Worker, frame: Any) -> None:
            if isinstance(frame, Finished):
                seen.add(worker.name)
            on_frame(worker, frame)

        monkeypatch.setattr(node.dispatcher, "on_frame", spy)
        await node.start()
        await until(lambda: len(node.workers.ready) == 2)
        jobs = [await ended(node, job_id) for job_id in [submit(node) for _ in range(8)]]
        await node.stop(0.0)
        return jobs

    assert {job.status for job in asyncio.run(main())} == {JobStatus.COMPLETED}
    assert len(seen) == 2


def test_a_full_disk_is_waited_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            full_until(node, monkeypatch, tries=2)
            return await ended(node, submit(node))

    assert asyncio.run(main()).status is JobStatus.COMPLETED


def test_a_disk_that_stays_full_fails_the_job_clearly_and_the_node_lives(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> tuple[Job, Job]:
        async with running(folder) as node:
            node.completion._disk_patience_s = 0.5
            full_until(node, monkeypatch, tries=10_000)
            failed = await ended(node, submit(node))
            monkeypatch.undo()
            return failed, await ended(node, submit(node))

    failed, after = asyncio.run(main())
    assert failed.outcome is not None
    assert (failed.outcome.http_status, failed.outcome.error_type) == (500, "runner_server_error")
    assert "disk is full" in str(failed.outcome.error)
    assert after.status is JobStatus.COMPLETED


@pytest.mark.parametrize(("refusals", "attempt", "status"), [(2, 1, 200), (10_000, 1, 500)])
def test_a_picture_is_not_drawn_again_because_it_could_not_be_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, attempt: int, status: int
) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            await until(lambda: node.outputs.is_warm)
            node.completion._disk_patience_s = 1.5
            pool: Any = node.outputs.pool
            run, left = pool.run, [refusals]

            async def refuse(*arguments: Any) -> Any:
                if left[0]:
                    left[0] -= 1
                    raise BrokenProcessPool("no process can be started")
                return await run(*arguments)

            monkeypatch.setattr(pool, "run", refuse)
            return await ended(node, submit(node))

    job = asyncio.run(main())
    assert job.outcome is not None
    assert (job.attempt, job.outcome.http_status) == (attempt, status)


def full_until(node: Node, monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    """The next `tries` files meet a full disk."""
    put = node.objects.put
    left = [tries]

    def refuse(*arguments: Any) -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(*arguments)

    monkeypatch.setattr(node.objects, "put", refuse)


@pytest.mark.parametrize("call", ["claim", "finish", "renew", "expire"])
def test_a_store_that_refuses_for_a_while_loses_nothing_and_is_told_of_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            real: Callable[..., Any] = getattr(node.store, call)
            left = [2]

            def refuse(*arguments: Any) -> Any:
                if left[0]:
                    left[0] -= 1
                    raise StoreError("the disk is full")
                return real(*arguments)

            monkeypatch.setattr(node.store, call, refuse)
            return await ended(node, submit(node))

    assert asyncio.run(main()).status is JobStatus.COMPLETED
    assert len(refusals(caplog)) <= 1


def test_a_store_that_is_away_is_told_of_once_however_many_wait_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[JobStatus]:
        async with running(folder) as node:
            finish, tries = node.store.finish, list[object]()

            def away(*claim: Any) -> bool:
                tries.append(claim)
                raise StoreError("the database is away")

            statuses = []
            for outage in (1, 2):
                monkeypatch.setattr(node.store, "finish", away)
                tries.clear()
                ids = [submit(node) for _ in range(3)]
                await until(lambda: len(tries) >= 7)
                monkeypatch.setattr(node.store, "finish", finish)
                statuses += [(await ended(node, job_id)).status for job_id in ids]
                assert len(refusals(caplog)) == outage
            return statuses

    assert asyncio.run(main()) == [JobStatus.COMPLETED] * 6


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of a store that refuses."""
    told = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    return [message for message in told if message.startswith("the store refuses")]


def test_a_release_that_the_store_refuses_is_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            release = node.store.release
            left = [2]

            def refuse(*arguments: Any, **named: Any) -> Any:
                if left[0]:
                    left[0] -= 1
                    raise StoreError("the disk is full")
                return release(*arguments, **named)

            monkeypatch.setattr(node.store, "release", refuse)
            return await ended(node, submit(node, "crash once"))

    assert asyncio.run(main()).status is JobStatus.COMPLETED


def test_other_nodes_hear_why_a_request_starts_over_no_later_than_that_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_GATES", str(folder))
    told: list[LiveChange] = []

    async def main() -> None:
        async with running(folder) as node:
            node.live.on_change(told.append)
            await ended(node, submit(node, "crash once"))
            taken = submit(node, "wait taken")
            await until(lambda: node.live.times(taken) is not None)
            assert await asyncio.to_thread(node.jobs.requeue, taken) is not None
            (folder / "taken").touch()
            await ended(node, taken)

    asyncio.run(main())
    lines = [change.lines[0]["message"] if change.lines else "" for change in told]
    why = ("the worker stopped; the request will run again", "taken from its worker by the operator")
    died, requeued = (index for index, change in enumerate(told) if change.starts_over)
    assert lines.index(why[0]) < died < lines.index(why[1]) < requeued


def test_an_end_without_the_store_leaves_the_claims_to_their_leases(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise StoreError("the database is away")

    async def main() -> None:
        async with running(folder) as node:
            await ended(node, submit(node))
            monkeypatch.setattr(node.store, "release", away)

    asyncio.run(main())
    (told,) = (record for record in caplog.records if "could not be handed back" in record.getMessage())
    assert told.getMessage().endswith("their leases will end: the database is away")
    assert told.exc_info is None


def test_missing_pictures_are_the_workers_fault_and_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Job:
        async with running(folder) as node:
            take = node.completion.take
            monkeypatch.setattr(
                node.completion, "take", lambda run, frame: take(run, frame) if run.job.attempt > 1 else None
            )
            return await ended(node, submit(node))

    job = asyncio.run(main())
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)


def test_an_idle_worker_has_a_request_within_milliseconds(folder: Path) -> None:
    """Not a benchmark: it would fail with any polling or batching window of 50 ms or more."""

    async def main() -> list[float]:
        async with running(folder) as node:
            waits = []
            for _ in range(20):
                job_id = await asyncio.to_thread(submit, node)
                submitted = time.perf_counter()
                await until(lambda job_id=job_id: job_id in node.dispatcher._runs or _is_done(node, job_id))
                waits.append(time.perf_counter() - submitted)
                await ended(node, job_id)
            return waits

    assert sorted(asyncio.run(main()))[10] < 0.05


def _is_done(node: Node, job_id: str) -> bool:
    job = node.store.get(job_id)
    return job is not None and job.status.is_finished


def test_stopping_lets_what_runs_finish_and_hands_the_rest_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_STEP_S", "0.02")

    async def first() -> tuple[str, str]:
        node = make_node(folder)
        await node.start()
        await until(lambda: node.ready)
        await node.outputs.warm()
        brief, endless = submit(node), submit(node, params={"num_inference_steps": 100_000})
        await until(lambda: node.live.progress(endless) is not None)
        await node.stop(drain_s=2.0)
        return brief, endless

    async def second(brief: str, endless: str) -> tuple[Job | None, Job | None]:
        node = make_node(folder)
        jobs = node.store.get(brief), node.store.get(endless)
        node.store.close()
        return jobs

    brief, endless = asyncio.run(first())
    done, waiting = asyncio.run(second(brief, endless))
    assert done is not None
    assert waiting is not None
    assert done.status is JobStatus.COMPLETED
    assert (waiting.status, waiting.attempt, waiting.deaths) == (JobStatus.QUEUED, 0, 0)


def test_requests_of_one_hint_share_a_worker_while_it_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takers: dict[int, set[str]] = {}

    async def draw(node: Node) -> dict[int, set[str]]:
        takers.clear()
        for job_id in [submit(node, hint_bucket=bucket) for bucket in range(8) for _ in range(3)]:
            await ended(node, job_id)
        return dict(takers)

    async def main() -> tuple[str, dict[int, set[str]], dict[int, set[str]]]:
        async with running(folder, device="cpu,cpu,cpu") as node:
            await until(lambda: len(node.workers.ready) == 3)
            claim = node.store.claim

            def claim_and_note(owner: str, *rest: Any) -> list[Job]:
                jobs = claim(owner, *rest)
                for job in jobs:
                    takers.setdefault(job.hint_bucket or 0, set()).add(owner.partition("#")[0])
                return jobs

            monkeypatch.setattr(node.store, "claim", claim_and_note)
            before = await draw(node)
            victim = next(worker for worker in node.workers if {worker.name} == before[0])
            monkeypatch.setenv("SCRIPTED_LOAD_S", "60")  # it will not be back within this test
            crashes(victim)
            await until(lambda: victim not in node.workers.ready)
            return victim.name, before, await draw(node)

    victim, before, after = asyncio.run(main())
    assert all(len(names) == 1 for names in [*before.values(), *after.values()])
    assert len(set.union(*before.values())) > 1
    assert victim not in set.union(*after.values())
    for bucket, names in before.items():
        assert after[bucket] == names or names == {victim}
