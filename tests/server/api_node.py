"""A node without workers for the HTTP tests: real store, hub and files; the test plays the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.registry import REGISTRY, ModelSpec
from pipelines.protocol import Preview, Progress
from server.hub import Hub
from server.objects import Objects
from server.settings import Settings
from server.store.base import CancelOutcome, Job, JobStatus, NewJob, Outcome, Store
from server.store.memory import MemoryStore

OWNER = "test-worker"


class ApiNode:
    """What `server.node.Node` offers the routes, with the dispatcher's moves as methods of the test."""

    def __init__(self, folder: Path, store: Store | None = None, **settings: Any) -> None:
        self.settings = Settings(data_dir=folder, **settings)
        self.store: Store = store or MemoryStore()
        self.hub = Hub()
        self.objects = Objects(folder / "files")
        self.ready = True
        self.spec: ModelSpec = REGISTRY["FLUX.1-dev"]

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, drain_s: float = 5.0) -> None:
        """Nothing to stop."""

    def health(self) -> dict[str, Any]:
        worker = {"device": "cpu", "state": "ready", "running": 0, "memory": {"rss": 1}}
        return {"state": "ready" if self.ready else "loading", "ready": self.ready, "workers": [worker]}

    def model_for(self, variants: tuple[str, ...]) -> ModelSpec:
        return self.spec

    def logs(self, job_id: str, outcome: Outcome | None) -> list[dict[str, Any]]:
        return outcome.logs if outcome else self.hub.logs(job_id)

    def submit(self, new: NewJob, max_queued: int | None = None) -> Job:
        limits = [limit for limit in (max_queued, self.settings.max_queue) if limit is not None]
        job = self.store.enqueue(new, min(limits))
        self.hub.changed(job.id)
        return job

    def cancel(self, job_id: str) -> CancelOutcome:
        outcome, _ = self.store.request_cancel(job_id)
        self.hub.changed(job_id)
        return outcome

    async def wait_finished(self, job_id: str, timeout_s: float | None = None) -> Job | None:
        while True:
            seen = self.hub.version(job_id)
            job = self.store.get(job_id)
            if job is None or job.status.is_finished:
                return job
            await self.hub.wait(job_id, seen, None)

    # The worker's moves

    def claim(self) -> Job:
        """Take the next waiting job."""
        (job,) = self.store.claim(OWNER, 1, 30.0)
        self.hub.changed(job.id)
        return job

    def step(self, job: Job, step: int, num_steps: int = 28, preview: bool = False) -> None:
        """Report a step, with a 2x1 preview if asked."""
        if preview:
            self.hub.show(Preview(job.id, job.epoch, step, 0, 2, 1, bytes(6)))
        self.hub.step(Progress(job.id, job.epoch, step, num_steps, 1.5))

    def finish(self, job: Job, outcome: Outcome | None = None) -> Outcome:
        """End a claimed job; by default with one stored picture."""
        outcome = outcome or self.picture(job)
        assert self.store.finish(job.id, OWNER, job.epoch, outcome)
        self.hub.changed(job.id)
        return outcome

    def picture(self, job: Job) -> Outcome:
        """A good end."""
        key = self.objects.put(b"\x89PNG picture", "image/png", "png")
        image = {"url": f"/files/{key}", "content_type": "image/png", "width": 1024, "height": 768}
        params = job.params or {}
        body = {
            "images": [image],
            "timings": {"inference": 1.5},
            "seed": params.get("seed"),
            "has_nsfw_concepts": [False],
            "prompt": params.get("prompt"),
        }
        return Outcome(JobStatus.COMPLETED, 200, body, metrics={"inference_time": 1.5}, logs=self.hub.logs(job.id))
