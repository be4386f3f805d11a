"""From what a worker reports to how a job ends: pictures are saved, failures become fal's errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from pipelines.protocol.frames import Failed, Picture
from server.files import disk
from server.files.objects import Access, ObjectsAwayError
from server.files.outputs import EncodedPicture, EncoderError, Outputs
from server.files.provenance import Provenance
from server.jobs.live import LiveJobs
from server.jobs.store import platform_outcomes
from server.jobs.store.base import PRIVATE_RETENTION_S, Store
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job, JobStatus, Outcome
from server.jobs.store.transitions import may_run_again
from server.settings import VERSION
from server.workers import threads

logger = logging.getLogger("fluxserve.dispatch")
T = TypeVar("T")

InputFault = Callable[[Job, Sequence[str | int], str], Outcome]
"""(job, place as the worker knows it, sentence) -> the end of a job whose input is at fault, as the API answers it."""

ResultBody = Callable[
    [Sequence[Mapping[str, Any]], Sequence[bool], Mapping[str, Any], Mapping[str, float]], dict[str, Any]
]
"""(images, has_nsfw_concepts, params, timings) -> the result as the API answers it."""

DISK_PATIENCE_S = 30.0
"""How long finished pictures wait for an encoder and for their disk before their job fails."""
AWAY_PATIENCE_S = 3600.0
"""How long they wait for an object store that does not answer: all nodes wait for the same one, and nothing is claimed
meanwhile, so that what waits is what the workers held."""
MAX_PAUSE_S = 5.0


@dataclass
class Run:
    """One claim of a job, at the worker process that claimed it.

    Args: job: with the parameters that the worker was sent, once it was. timings: of the preparation.
        preparing: fetches what the job names, as long as the worker does not have it.
        waits_for: the last line of its log about a model that the worker loads. takes: the name of the one for which
            the worker said that it waits.
    """

    job: Job
    owner: str
    has_started: bool = False
    preparing: asyncio.Task[None] | None = None
    waits_for: str = ""
    takes: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    pictures: dict[int, asyncio.Task[EncodedPicture]] = field(default_factory=dict)

    @property
    def is_preparing(self) -> bool:
        """Whether the worker has not been given it yet."""
        return self.preparing is not None and not self.preparing.done()

    def drop(self) -> None:
        """Stop fetching and encoding: nobody will ask for it."""
        for task in (self.preparing, *self.pictures.values()):
            if task is not None:
                task.cancel()


class Completion:
    """Ends runs. Every method returns when the end is in the store, or was refused because the claim is not current.

    What is drawn is not drawn again because a later step failed. An encoder that cannot start and a disk that refuses
    are waited out: pictures for DISK_PATIENCE_S (AWAY_PATIENCE_S if the object store is away), then the job fails and
    says so; the record of an end for as long as it takes, since the lease holds meanwhile.
    """

    def __init__(
        self,
        store: Store,
        live: LiveJobs,
        outputs: Outputs,
        result_body: ResultBody,
        input_fault: InputFault,
        disk_patience_s: float = DISK_PATIENCE_S,
        embed_parameters: bool = False,
    ) -> None:
        self._store = store
        self._live = live
        self._outputs = outputs
        self._result_body = result_body
        self._input_fault = input_fault
        self._disk_patience_s = disk_patience_s
        self._embed_parameters = embed_parameters
        # Threads of our own: a flood of submits must not stand in line before an end.
        self._threads = threads.started(4, "dispatch-store")
        self._refused = 0
        """Operations that wait until the store can do them."""

    @property
    def can_store(self) -> bool:
        """Whether what is drawn now can be encoded and stored."""
        return self._outputs.problem is None

    def take(self, run: Run, frame: Picture) -> None:
        """Begin to encode a picture while the worker goes on with the next."""
        image_format = run.job.output.get("format", "jpeg")
        provenance = self._provenance(run.job, frame.seed)
        quality = run.job.output.get("quality")
        encoding = self._patiently(run, lambda: self._outputs.encode(frame, image_format, provenance, quality))
        run.pictures[frame.index] = asyncio.create_task(encoding)

    async def note_begun(self, run: Run) -> None:
        """The run of a job that may run only once has begun: remembered, should this node die in it."""
        job_id, owner, epoch = self._claim(run)
        await self.retry_until_stored(lambda: self._store.note_begun(job_id, owner, epoch))

    async def complete(self, run: Run, timings: Mapping[str, float]) -> None:
        """All pictures have arrived: save them and end the job."""
        assert run.job.params is not None
        try:
            pictures = [await run.pictures[index] for index in range(run.job.params["num_images"])]
        except EncoderError:
            run.drop()
            await self.end(run, platform_outcomes.server_error("The server could not encode the picture"))
            return
        except Exception:
            logger.exception("request %s: its pictures are not all there", run.job.id)
            run.drop()
            await self.retry_elsewhere(run)
            return
        try:
            images = await self._save(run, pictures)
        except OSError as exc:
            message = f"The server could not store the picture: {disk.describe(exc)}"
            await self.end(run, platform_outcomes.server_error(message))
            return
        body = self._result_body(
            images, [picture.has_nsfw_concept for picture in pictures], run.job.params, {**run.timings, **timings}
        )
        metrics = {"inference_time": timings.get("inference")}
        if (device_s := timings.get("device")) is not None:
            metrics["device_time"] = device_s
        if not await self.end(run, Outcome(JobStatus.COMPLETED, 200, body, metrics=metrics)):
            self._outputs.discard(images)

    async def fail(self, run: Run, frame: Failed) -> None:
        """The worker could not: end the job, or let it run again where the fault was the worker's."""
        logger.warning("request %s failed at %s: %s: %s", run.job.id, run.owner, frame.kind, frame.message)
        if frame.kind == "internal":
            await self.retry_elsewhere(run)
        elif frame.kind == "deadline":
            await self.end(run, platform_outcomes.start_timeout())
        elif frame.kind == "out_of_memory":
            await self.end(run, platform_outcomes.server_error(_sentence(frame.message)))
        elif frame.kind == "input_error":
            await self.end(run, self._input_fault(run.job, frame.loc, _sentence(frame.message)))
        else:
            await self.end(run, platform_outcomes.model_error(_sentence(frame.message)))

    async def cancelled(self, run: Run, step: int) -> None:
        """The worker dropped it, as asked."""
        self._live.log(run.job.id, f"cancelled after {step} steps")
        await self.end(run, platform_outcomes.cancelled())

    async def retry_elsewhere(self, run: Run) -> None:
        """Give the claim up after a fault that is not the job's; it fails when no attempt is left."""
        if not may_run_again(run.job.output, "server_error", run.job.attempt - run.job.deaths):
            await self.end(
                run, platform_outcomes.server_error("The worker had a fault, and the request may not run again")
            )
            return
        self._live.log(run.job.id, "the worker had a fault; the request will run again", "WARN")
        await asyncio.sleep(min(0.2 * 2 ** (run.job.attempt - 1), MAX_PAUSE_S))
        await self.retry_until_stored(lambda: self._store.release_one(*self._claim(run)))
        if (job := await self.in_thread(partial(self._store.get, run.job.id))) is not None:
            await self.notify_watchers([job])

    async def end(self, run: Run, outcome: Outcome) -> bool:
        """Record an outcome with the job's log; False if the claim is not current any more."""
        outcome = replace(outcome, logs=self._live.logs(run.job.id))
        job_id, owner, epoch = self._claim(run)

        def record() -> bool:
            is_recorded = self._store.finish(job_id, owner, epoch, outcome)
            if is_recorded:
                self._live.ended(job_id)  # on this thread: who is told of ends reads the whole row
            return is_recorded

        is_recorded = await self.retry_until_stored(record)
        if is_recorded:
            logger.info("request %s ended: %s %d", job_id, outcome.status, outcome.http_status)
        else:
            logger.warning("request %s: an end of attempt %d came too late", job_id, run.job.attempt)
        return is_recorded

    async def notify_watchers(self, jobs: Sequence[Job]) -> None:
        """The store took claims back, so the jobs wait again or have ended: watchers look again."""
        for job in jobs:
            if job.status.is_finished:
                await self.in_thread(partial(self._live.ended, job.id))
            else:
                self._live.start_over(job.id)

    async def retry_until_stored(self, operation: Callable[[], T]) -> T:
        """Run a store operation in a thread until the store can do it."""
        try:
            return await self.in_thread(operation)
        except StoreError as exc:
            if not self._refused:  # all who wait, wait for the same store
                logger.error("the store refuses what runs have come to; it will be tried again: %s", exc)
        self._refused += 1
        try:
            return await self._retried(operation)
        finally:
            self._refused -= 1

    async def _retried(self, operation: Callable[[], T]) -> T:
        pause_s = 0.2
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self.in_thread(operation)
            except StoreError as exc:
                logger.debug("the store still refuses: %s", exc)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def in_thread(self, operation: Callable[[], T]) -> T:
        """Run a store operation off the event loop. Raises: what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, operation)

    def close(self) -> None:
        """End the threads; nothing may be delivered after this."""
        self._threads.shutdown(wait=True)

    @staticmethod
    def _claim(run: Run) -> tuple[str, str, int]:
        return run.job.id, run.owner, run.job.epoch

    async def _save(self, run: Run, pictures: Sequence[EncodedPicture]) -> list[dict[str, Any]]:
        """Entries for `images`. Raises: OSError if the disk refused for too long."""
        sync_mode = bool(run.job.output.get("sync_mode"))
        wanted_s: float | None = run.job.output.get("ttl_s")  # the caller's own lifetime for the pictures
        ttl_s = wanted_s if run.job.store_io else min(wanted_s or PRIVATE_RETENTION_S, PRIVATE_RETENTION_S)
        access: Access = run.job.output.get("access", "allow")
        images: list[dict[str, Any]] = []
        try:
            for picture in pictures:
                deliver = partial(self._outputs.deliver, picture, sync_mode, ttl_s, access, run.job.tenant)
                images.append(await self._patiently(run, deliver))
        except OSError:
            self._outputs.discard(images)
            raise
        return images

    async def _patiently(self, run: Run, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step after the drawing while this machine cannot do it. Raises: the last refusal."""
        began = asyncio.get_running_loop().time()
        pause_s = 0.2
        while True:
            try:
                return await step()
            except (OSError, EncoderError) as exc:
                logger.error("request %s: its picture waits: %s", run.job.id, exc)
                patience_s = AWAY_PATIENCE_S if isinstance(exc, ObjectsAwayError) else self._disk_patience_s
                if asyncio.get_running_loop().time() + pause_s > began + patience_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _provenance(self, job: Job, seed: int) -> Provenance:
        """What the file of a picture says of its making; prompt and seed only where they are asked for."""
        params = job.params or {}
        with_parameters = job.output.get("embed_parameters", self._embed_parameters)
        return Provenance(
            software=f"fluxserve {VERSION}",
            model=str(params.get("model")),
            endpoint=job.endpoint,
            request_id=job.id,
            prompt=params.get("prompt") if with_parameters else None,
            seed=seed if with_parameters else None,
        )


def _sentence(message: str) -> str:
    """As callers read it: a worker's reasons begin as its log has them."""
    return message[:1].upper() + message[1:]
