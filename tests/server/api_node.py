"""A node without workers for the HTTP tests: real store, live and files; the test plays the worker."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from models.registry import REGISTRY
from pipelines.protocol.frames import Preview, Progress
from server.api.prices import Prices
from server.api.served import Served
from server.files.addresses import SignedAddresses
from server.files.choice import open_objects
from server.files.inputs import Inputs
from server.files.picture_pool import PicturePool
from server.http.outgoing import parse_networks, refuse_at_sight
from server.jobs.dispatcher import Dispatcher
from server.jobs.live import LiveJobs
from server.jobs.membership import Membership
from server.jobs.service import JobService
from server.jobs.store.base import Store
from server.jobs.store.job import Job, JobStatus, Outcome
from server.jobs.store.memory import MemoryStore
from server.node import allowance_of, key_ring
from server.settings import Settings
from server.workers.process import WorkerEvents, WorkerOptions, Workers

OWNER = "test-worker"
METRICS = {"inference_time": 1.5, "device_time": 1.25}


class ApiNode:
    """What `server.node.Node` offers the routes, with the dispatcher's moves as methods of the test."""

    def __init__(self, folder: Path, store: Store | None = None, **settings: Any) -> None:
        self.settings = Settings(data_dir=folder, **settings)
        self.store: Store = store or MemoryStore()
        self.live = LiveJobs()
        signed_s = self.settings.signed_urls_s
        self.objects = open_objects(
            folder / "files",
            self.settings.objects,
            self.settings.s3_endpoint,
            self.settings.s3_redirect,
            addresses=None if signed_s is None else SignedAddresses.of(folder, signed_s),
        )
        self.pool = PicturePool()
        self.inputs = Inputs(self.objects, self.pool)
        self.ready = True
        self.served = Served((REGISTRY["FLUX.1-dev"],))
        self.keys = key_ring(self.settings)
        self.workers = Workers("none", [], WorkerOptions(()), cast("WorkerEvents", None))
        self.prices = Prices.read(self.settings.prices)
        self.jobs = JobService(
            self.store,
            self.live,
            self.settings.max_queue,
            _nothing,
            _nothing,
            _nothing,
            allowance=allowance_of(self.keys, self.objects, self.prices),
            sign=self.objects.signed,
            check_webhook=partial(refuse_at_sight, allowed=parse_networks(self.settings.allow_private_cidrs)),
        )
        self.membership = Membership(
            self.store, "here", self.workers, cast("Dispatcher", None), self.live, self.jobs.callers
        )

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, drain_s: float = 5.0) -> None:
        """Close what the routes opened."""
        await self.inputs.aclose()
        self.pool.close()

    def health(self) -> dict[str, Any]:
        worker = {"device": "cpu", "state": "ready", "running": 0, "memory": {"rss": 1}}
        return {"state": "ready" if self.ready else "loading", "ready": self.ready, "workers": [worker]}

    # The worker's moves

    def claim(self) -> Job:
        """Take the next waiting job."""
        (job,) = self.store.claim(OWNER, 1, 30.0)
        self.live.changed(job.id)
        return job

    def step(self, job: Job, step: int, num_steps: int = 28, preview: bool = False) -> None:
        """Report a step, with a 2x1 preview if asked."""
        if preview:
            self.live.show(Preview(job.id, job.epoch, step, 0, 2, 1, bytes(6)))
        self.live.step(Progress(job.id, job.epoch, step, num_steps, 1.5))

    def finish(self, job: Job, outcome: Outcome | None = None) -> Outcome:
        """End a claimed job; by default with one stored picture."""
        outcome = outcome or self.picture(job)
        assert self.store.finish(job.id, OWNER, job.epoch, outcome)
        self.live.changed(job.id)
        return outcome

    def picture(self, job: Job) -> Outcome:
        """A good end."""
        key = self.objects.put(b"\x89PNG picture", "image/png", "png", tenant=job.tenant)
        image = {"url": f"/files/{key}", "content_type": "image/png", "width": 1024, "height": 768}
        params = job.params or {}
        body = {
            "images": [image],
            "timings": {"inference": 1.5},
            "seed": params.get("seed"),
            "has_nsfw_concepts": [False],
            "prompt": params.get("prompt"),
        }
        return Outcome(JobStatus.COMPLETED, 200, body, metrics=METRICS, logs=self.live.logs(job.id))


def _nothing(*about: str) -> None:
    """For what a node would tell its dispatcher: the test plays it."""
