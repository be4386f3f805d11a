"""One node: the store, the files, the workers and what ties them together. Never imports torch."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from models.registry import ModelSpec, resolve
from server.delivery import Delivery
from server.devices import count_gpus, devices
from server.disk import Disk
from server.dispatcher import Dispatcher
from server.hub import Hub
from server.objects import Objects
from server.outputs import Outputs
from server.schemas.sizes import PRESETS
from server.settings import Settings
from server.store.base import CancelOutcome, Job, JobStatus, NewJob, Outcome, QueueFullError, Store, StoreError
from server.store.sqlite import SqliteStore
from server.workers import WORKER_COMMAND, WorkerOptions, Workers, WorkerState

logger = logging.getLogger("fluxserve.node")

DRAIN_S = 5.0
SWEEP_S = 3600.0
FORGET_S = 10.0
PROBE_S = 1.0
FILE_MARGIN_S = 3600.0
"""Files outlive the row that names them by this much, so that no result ever names a missing file."""
REQUEST_THREADS = 32
"""Submits that may wait for the disk at once; they share commits."""


@dataclass
class Node:
    """What the routes use. Made by `from_settings`; lives between `start` and `stop` on one event loop."""

    settings: Settings
    specs: tuple[ModelSpec, ...]
    store: Store
    hub: Hub
    objects: Objects
    outputs: Outputs
    delivery: Delivery
    dispatcher: Dispatcher
    workers: Workers
    disk: Disk
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _is_stopping: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, worker_command: Sequence[str] = WORKER_COMMAND) -> Node:
        """Open the data directory and wire everything; starts nothing.

        Raises: StoreError, UnknownModelError or ValueError with one sentence for the operator.
        """
        specs = tuple(resolve(argument) for argument in settings.models)
        names = devices(settings.device, count_gpus())
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = SqliteStore(settings.data_dir / "jobs.db")
        hub = Hub()
        objects = Objects(settings.data_dir / "files")
        outputs = Outputs(objects, ttl_s=settings.retention_s + FILE_MARGIN_S)
        delivery = Delivery(store, hub, outputs)
        dispatcher = Dispatcher(store, hub, delivery)
        options = WorkerOptions(
            models=settings.models,
            dtype=settings.dtype,
            quantization=settings.quantization,
            acceleration=settings.acceleration,
            offload=settings.offload,
            tuning=settings.tuning,
            memory_gb=settings.memory_gb,
            hang_s=settings.hang_s,
            warmup=settings.warmup,
            warmup_sizes=tuple(PRESETS.values()),
            cache_dir=settings.data_dir / "cache",
            command=tuple(worker_command),
        )
        # Random, so that a claim of an earlier life of this node is never taken for one of ours.
        workers = Workers(secrets.token_hex(4), names, options, dispatcher)
        disk = Disk(settings.data_dir)
        return cls(settings, specs, store, hub, objects, outputs, delivery, dispatcher, workers, disk)

    async def start(self) -> None:
        """Take up what an earlier life left, start the workers and begin to claim."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(REQUEST_THREADS, "request"))
        ended = await asyncio.to_thread(self.store.end_ephemeral)
        recovered = await asyncio.to_thread(self.store.recover)
        if ended or recovered:
            logger.info("after a restart: %d requests run again, %d runs ended", len(recovered), ended)
        self.dispatcher.start(self.workers)
        self.workers.start()
        self._tasks = [
            asyncio.create_task(self._keep_tidy(), name="tidy"),
            asyncio.create_task(self._forget_ended(), name="forget"),
            asyncio.create_task(self._probe_disk(), name="disk"),
            asyncio.create_task(self._warm_outputs(), name="warm"),
        ]

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Let what runs finish for at most so long, hand the rest back, and close everything. Idempotent."""
        if self._is_stopping:
            return
        self._is_stopping = True
        await self.dispatcher.drain(drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.workers.stop()
        await self.dispatcher.close()
        self.delivery.close()
        self.outputs.close()
        self.store.close()

    def submit(self, new: NewJob, max_queued: int | None = None) -> Job:
        """Store a job durably and wake the dispatcher. Any thread.

        Args: max_queued: the caller's own limit on waiting jobs; the server's holds too.
        Raises: QueueFullError, StoreError.
        """
        limits = [self.settings.max_queue, *([] if max_queued is None else [max_queued])]
        try:
            job = self.store.enqueue(new, min(limits))
        except QueueFullError:
            raise
        except StoreError:
            self.disk.refused()
            raise
        self.hub.changed(job.id)
        self.dispatcher.wake()
        return job

    def cancel(self, job_id: str) -> CancelOutcome:
        """Cancel a waiting job, or tell its worker to drop it before the next step. Any thread. Raises: StoreError."""
        outcome, _ = self.store.request_cancel(job_id)
        if outcome is CancelOutcome.REQUESTED:
            self.dispatcher.cancel(job_id)
            self.hub.changed(job_id)
        elif outcome is CancelOutcome.CANCELLED:
            self.hub.ended(job_id)
        return outcome

    async def wait_finished(self, job_id: str, timeout_s: float | None = None) -> Job | None:
        """The row once it has ended; None if it has not in time, or is unknown."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            seen = self.hub.version(job_id)
            job = self.store.get(job_id)
            if job is None or job.status.is_finished:
                return job
            # Look again now and then whatever the hub says: another node may have ended it.
            left_s = 10.0 if deadline is None else min(10.0, deadline - time.monotonic())
            if left_s <= 0:
                return None
            await self.hub.wait(job_id, seen, left_s)

    def logs(self, job_id: str, outcome: Outcome | None) -> list[dict[str, Any]]:
        """The log to show for a job: the recorded one if there is one, else the live one."""
        return outcome.logs if outcome is not None and outcome.logs else self.hub.logs(job_id)

    def model_for(self, variants: tuple[str, ...]) -> ModelSpec:
        """Which of the served models answers for an endpoint: the best by the order of `variants`, else the first."""
        return next((spec for variant in variants for spec in self.specs if spec.variant == variant), self.specs[0])

    @property
    def ready(self) -> bool:
        """Whether a worker is loaded, the queue accepts and the disk takes it."""
        return self.dispatcher.is_accepting and bool(self.workers.ready) and self.disk.is_writable

    def health(self) -> dict[str, Any]:
        """What /health says."""
        models = {model["name"]: model for worker in self.workers if worker.ready for model in worker.ready.models}
        counts = self.store.counts()
        return {
            "state": self._state(),
            "ready": self.ready,
            "models": list(models.values()),
            "has_safety_checker": bool(models) and all(model["has_safety_checker"] for model in models.values()),
            "workers": [worker.describe() for worker in self.workers],
            "queue": {"queued": counts[JobStatus.QUEUED], "running": counts[JobStatus.RUNNING]},
        }

    def _state(self) -> str:
        if self._is_stopping:
            return "stopping"
        if not self.disk.is_writable:
            return "unwritable"
        if self.ready:
            return "ready"
        return "loading" if any(worker.state is WorkerState.LOADING for worker in self.workers) else "starting"

    async def _warm_outputs(self) -> None:
        """Start an encoder before the first picture needs it, but not before a worker has used the cores to load."""
        await self.dispatcher.first_ready.wait()
        await self.outputs.warm()

    async def _keep_tidy(self) -> None:
        """Hourly: drop what is past its retention, in the store and on the disk."""
        while True:
            try:
                rows = await asyncio.to_thread(self.store.sweep, self.settings.retention_s)
                files = await asyncio.to_thread(self.objects.sweep)
                logger.info("swept %d requests and %d files", len(rows), files)
            except Exception:
                logger.exception("the sweep failed; it will be tried again")
            await asyncio.sleep(SWEEP_S)

    async def _probe_disk(self) -> None:
        """Find out that the disk is full before a request does, and that it no longer is."""
        while True:
            await asyncio.to_thread(self.disk.probe)
            await asyncio.sleep(PROBE_S)

    async def _forget_ended(self) -> None:
        """Keep the hub small: a busy node ends tens of jobs a second, each with a log."""
        while True:
            await asyncio.sleep(FORGET_S)
            self.hub.forget_old()
