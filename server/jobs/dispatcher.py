"""Between store and workers: claims jobs, sends them, renews leases, hands back the claims of a worker that died."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    Finished,
    Frame,
    Heartbeat,
    Loading,
    Log,
    Note,
    Picture,
    Preview,
    Progress,
    Ready,
    Share,
    Shared,
    Shutdown,
    Sleep,
    Started,
    Submit,
    Waits,
    Wake,
)
from server.jobs.completion import Completion, Run
from server.jobs.forecast import Forecast
from server.jobs.limits import Allowance
from server.jobs.live import LiveJobs
from server.jobs.preparation import Preparations, Prepared
from server.jobs.store import platform_outcomes
from server.jobs.store.base import HINT_BUCKETS, Store
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job, JobStatus, Outcome
from server.jobs.store.transitions import may_repeat
from server.workers.process import Worker, Workers

logger = logging.getLogger("fluxserve.dispatch")

Rest = Literal["draining", "drained"]

LEASE_S = 30.0
RENEW_S = 5.0
TEND_S = 1.0
AHEAD = 4
"""Requests that a worker holds beyond those it has begun, so that its next step never waits for a claim."""
HAND_BACK_S = 5.0
"""How long a stop waits for a store that may not answer."""
MAX_PREPARING = 64
"""Requests of a worker whose pictures, adapters or prompts are being fetched, or whose model is being loaded: they do
not count as held, so that neither a slow address nor a large model keeps other requests waiting. One tenant's fill at
most half."""
SAVE_GRACE_S = 1.0
"""After a worker's death: how long to wait for the saving of pictures that had already arrived from it. An encoder that
died with it takes longer to start: then they are drawn again."""


class Dispatcher:
    """Runs on one event loop; `wake` and `cancel` may be called from any thread.

    No batching window and no polling: a submit wakes it, and an idle worker has the request one commit later.
    """

    def __init__(
        self,
        store: Store,
        live: LiveJobs,
        completion: Completion,
        preparations: Preparations,
        allowance: Allowance | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        self._store = store
        self._allowance = allowance or Allowance()
        self._forecast = forecast or Forecast()
        self._live = live
        self._completion = completion
        self._preparations = preparations
        live.on_end(preparations.forget)
        self._workers: Workers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self.first_ready = asyncio.Event()
        self._is_accepting = False
        self._is_in_haste = False
        self._runs: dict[str, Run] = {}
        self._unseen: Counter[str] = Counter()
        self._endings: dict[asyncio.Task[object], Run | None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._owners: set[str] = set()
        self._claiming = asyncio.Lock()
        self._unsent: dict[str, frozenset[str]] = {}
        self._early_cancels: set[str] = set()
        self._resting: frozenset[str] = frozenset()
        self._handing_back: set[str] = set()
        self._had_room = False

    @property
    def is_accepting(self) -> bool:
        """Whether requests are being claimed."""
        return self._is_accepting

    def start(self, workers: Workers) -> None:
        """Begin to claim for these workers, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._workers = workers
        self._is_accepting = True
        self._tasks = [
            asyncio.create_task(self._claim_when_woken(), name="claims"),
            asyncio.create_task(self._renew_and_expire(), name="leases"),
        ]
        self._wake.set()

    async def drain(self, timeout_s: float) -> None:
        """Claim no more, and wait until what runs has ended, at most so long."""
        self._is_accepting = False
        deadline = time.monotonic() + timeout_s
        while (self._runs or self._endings) and not self._is_in_haste:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.02)

    def hasten(self) -> None:
        """Let a drain end now."""
        self._is_in_haste = True

    async def close(self) -> None:
        """Stop, after the workers have, and hand back every claim: the jobs wait for the next start."""
        self._is_accepting = False
        for task in [*self._tasks, *self._endings]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._endings, return_exceptions=True)
        try:
            async with asyncio.timeout(HAND_BACK_S):
                await self._hand_all_back()
        except TimeoutError:
            logger.error("claims could not be handed back within %.0f s; their leases will end", HAND_BACK_S)

    async def _hand_all_back(self) -> None:
        for owner in self._owners:
            try:
                await self._completion.in_thread(partial(self._store.release, owner, died=False))
            except StoreError as exc:
                logger.error("claims of %s could not be handed back, their leases will end: %s", owner, exc)

    def let_rest(self, names: frozenset[str]) -> None:
        """Claim for all workers but these. What they have not begun goes back to the line, the rest they finish."""
        if names == self._resting or self._workers is None:
            return
        newly, self._resting = names - self._resting, names
        for worker in self._workers:
            if worker.name in newly:
                self._handing_back.add(worker.name)
                self._see_to(self._hand_back(worker))
        self._wake.set()

    def runs_of(self, worker: Worker) -> list[Run]:
        """What it holds, and what of it is being saved."""
        ending = [run for run in self._endings.values() if run is not None]
        return [run for run in [*self._runs.values(), *ending] if run.owner == worker.owner]

    def rest_of(self, worker: Worker) -> Rest | None:
        """How far a worker is that was told to rest; None for one that was not."""
        if worker.name not in self._resting:
            return None
        return "draining" if worker.name in self._handing_back or self.runs_of(worker) else "drained"

    def wake(self) -> None:
        """There may be something to claim. Any thread."""
        self._on_loop(self._wake.set)

    def cancel(self, job_id: str) -> None:
        """Forward a cancel request that the store has flagged. Any thread."""
        self._on_loop(self._forward_cancel, job_id)

    def abandon(self, job_id: str, epoch: int) -> None:
        """The store has taken this claim back: its worker shall drop the job. Any thread."""
        self._on_loop(self._abandon, job_id, epoch)

    def on_frame(self, worker: Worker, frame: Frame) -> None:
        """See WorkerEvents."""
        match frame:
            case Ready():
                self.first_ready.set()
                self._wake.set()
            case Heartbeat():
                self._unseen[worker.name] = 0
                self._wake.set()
            case Loading():
                self._tell_of_loading(worker, frame)
            case Log() | Submit() | Cancel() | Sleep() | Wake() | Shutdown() | Share() | Shared():
                pass
            case _:
                run = self._runs.get(frame.job_id)
                # A frame of an earlier claim: its run is over, whatever it says.
                if run is not None and run.job.epoch == frame.epoch and run.owner == worker.owner:
                    self._on_run(run, frame)

    def on_death(self, worker: Worker, owner: str) -> None:
        """See WorkerEvents."""
        lost = [run for run in self._runs.values() if run.owner == owner]
        for run in lost:
            run.drop()
            del self._runs[run.job.id]
        self._unseen[worker.name] = 0
        not_started = frozenset(run.job.id for run in lost if not run.has_started)
        self._see_to(self._release_claims_of_dead_worker(owner, not_started))

    def _tell_of_loading(self, worker: Worker, frame: Loading) -> None:
        """In the logs of the requests that wait for it: a line every tenth."""
        line = f"loading {frame.model} ({frame.stage}): {int(frame.fraction * 10) * 10} %"
        for run in self._runs.values():
            is_meant = run.owner == worker.owner and frame.model in (_model_of(run.job), run.takes)
            if is_meant and not run.is_preparing and run.waits_for != line:
                run.waits_for = line
                self._live.log(run.job.id, line)

    def _on_run(
        self, run: Run, frame: Waits | Note | Started | Progress | Preview | Picture | Finished | Failed | Cancelled
    ) -> None:
        match frame:
            case Waits():
                run.takes = frame.model or None
                if frame.model not in ("", _model_of(run.job)):  # of its own model it reads how far it is
                    self._live.log(frame.job_id, f"waits until {frame.model} is loaded")
            case Started():
                run.has_started = True
                self._live.note_begun(frame.job_id, run.owner, self._store.now())
                if not may_repeat(run.job):
                    self._see_to(self._completion.note_begun(run))
                self._live.log(
                    frame.job_id, "started" if run.job.attempt == 1 else f"started, attempt {run.job.attempt}"
                )
                self._wake.set()
            case Note():
                self._live.log(frame.job_id, frame.message, "WARN")
            case Progress():
                self._live.step(frame)
            case Preview():
                self._live.show(frame)
            case Picture():
                self._completion.take(run, frame)
            case Finished():
                self._live.note_timings(frame.job_id, frame.timings)
                self._forecast.note_end(run.job.params, frame.timings.get("device", 0.0))
                self._live.log(frame.job_id, f"finished in {frame.timings.get('inference', 0.0):.2f} s")
                self._end_run(run, self._completion.complete(run, frame.timings))
            case Failed():
                self._end_run(run, self._completion.fail(run, frame))
            case Cancelled():
                self._end_run(run, self._completion.cancelled(run, frame.step))

    def _end_run(self, run: Run, ending: Coroutine[Any, Any, object]) -> None:
        """The worker is done with it; its room is free while the node finishes the rest."""
        del self._runs[run.job.id]
        self._see_to(self._end_or_release(run, ending), run)
        self._wake.set()

    async def _end_or_release(self, run: Run, ending: Coroutine[Any, Any, object]) -> None:
        """A fault of our own in ending a run must not leave its job claimed by a worker that lives on."""
        try:
            await ending
        except Exception:
            logger.exception("request %s: its end was not recorded; it will run again", run.job.id)
            await self._completion.retry_elsewhere(run)

    def _see_to(self, ending: Coroutine[Any, Any, object], ends: Run | None = None) -> None:
        """Args: ends: the run that its worker has finished with, and that ends with this."""
        task = asyncio.create_task(ending)
        self._endings[task] = ends
        task.add_done_callback(self._note_ending)

    def _note_ending(self, task: asyncio.Task[object]) -> None:
        del self._endings[task]
        if not task.cancelled() and task.exception() is not None:
            logger.error("a claim was not given up; its lease will expire", exc_info=task.exception())
        self._wake.set()

    async def _release_claims_of_dead_worker(self, owner: str, not_started: frozenset[str]) -> None:
        """Let the claims of a dead worker go: at once, but for what it had delivered, if that cannot be saved soon."""
        async with self._claiming:
            pass  # a claim of the dead worker may be under way
        not_started |= self._unsent.pop(owner, frozenset())
        saves = {task: run.job for task, run in self._endings.items() if run is not None and run.owner == owner}
        await self._release(owner, not_started, frozenset(job.id for job in saves.values()))
        if saves:
            await asyncio.wait(saves, timeout=SAVE_GRACE_S)
            # The worker was done with them: its death is none of theirs.
            done_with = frozenset(job.id for job in saves.values() if may_repeat(job))
            await self._release(owner, not_started | done_with)
        self._owners.discard(owner)

    async def _release(self, owner: str, not_started: frozenset[str], keep: frozenset[str] = frozenset()) -> None:
        released = await self._completion.retry_until_stored(
            lambda: self._store.release(owner, died=True, not_started=not_started, keep=keep)
        )
        for job in released:
            if job.status is JobStatus.QUEUED:
                self._live.log(job.id, "the worker stopped; the request will run again", "WARN")
            logger.warning("request %s lost its worker %s: now %s", job.id, owner, job.status)
        await self._completion.notify_watchers(released)
        self._wake.set()

    async def _hand_back(self, worker: Worker) -> None:
        """Let go of what a worker that rests has not begun: another may draw it meanwhile."""
        owner = worker.owner
        try:
            async with self._claiming:
                pass  # a claim for it may be under way
            waiting = [run for run in self.runs_of(worker) if not run.has_started and may_repeat(run.job)]
            for run in waiting:
                self._abandon(run.job.id, run.job.epoch)
            kept = frozenset(run.job.id for run in self.runs_of(worker))
            release = partial(self._store.release, owner, died=False, keep=kept)
            released = await self._completion.retry_until_stored(release) if waiting else []
            for job in released:
                self._live.log(job.id, "its worker takes no more requests; it goes to another")
            await self._completion.notify_watchers(released)
        finally:
            self._handing_back.discard(worker.name)

    def _abandon(self, job_id: str, epoch: int) -> None:
        run = self._runs.get(job_id)
        if run is not None and run.job.epoch == epoch:
            del self._runs[job_id]
            run.drop()
            self._send_cancel(run)

    async def _claim_when_woken(self) -> None:
        is_told = False  # a store that is away stays so for many tries
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                # What could not be stored is not drawn. The next heartbeat asks again.
                while self._is_accepting and self._completion.can_store and await self._claim_once():
                    pass
                is_told = False
            except StoreError as exc:
                if not is_told:
                    logger.error("the store refuses claims, they will be tried again: %s", exc)
                is_told = True
                await asyncio.sleep(TEND_S)
                self._wake.set()
            except Exception:  # of one request or row: the others must not wait for ever
                logger.exception("a claim failed, next try in %.0f s", TEND_S)
                await asyncio.sleep(TEND_S)
                self._wake.set()

    async def _claim_once(self) -> bool:
        """Claim for the worker that will be free first; False when nothing waits or nobody has room."""
        assert self._workers is not None
        quarantined = self._store.quarantined()
        waiting = self._store.counts()[JobStatus.QUEUED] - quarantined
        takers = sorted(self._willing, key=self._predicted_load_ms)
        if quarantined:
            # Each runs alone, so that a job that crashes workers is found; one worker is kept free for that.
            alone = min(takers, key=self.held, default=None)
            if alone is not None and self.held(alone):
                takers.remove(alone)
            elif alone is not None and await self._claim_for(alone, 1, quarantined=True):
                return True
        with_room = [worker for worker in takers if self._room(worker)]
        for worker in with_room if waiting else ():
            # An even share: several workers that come free together should each get some.
            share = min(self._room(worker), math.ceil(waiting / len(with_room)))
            if await self._claim_for(worker, share, quarantined=False):
                return True
        return False

    async def _claim_for(self, worker: Worker, limit: int, quarantined: bool) -> bool:
        if worker.name in self._resting:  # told so while another claim was made
            return False
        owner, models = worker.owner, worker.models
        self._owners.add(owner)
        # A quarantined job runs alone wherever there is room, whatever its hint.
        buckets = None if quarantined else self._buckets_of(worker)
        crowding = self._crowding(worker)

        def at_most(tenant: str) -> int | None:
            return 0 if tenant in crowding else self._allowance.running(tenant)

        claim = partial(self._store.claim, owner, limit, LEASE_S, models, quarantined, buckets, at_most)
        async with self._claiming:
            jobs = await self._completion.in_thread(claim)
        if worker.owner != owner or worker.pid is None:
            # It died while the claim was being committed: its release, which has waited for this, takes them along.
            self._unsent[owner] = frozenset(job.id for job in jobs)
            return bool(jobs)
        for job in jobs:
            self._submit(worker, job)
        self._early_cancels.clear()
        return bool(jobs)

    @property
    def _willing(self) -> list[Worker]:
        """The workers for which is claimed."""
        assert self._workers is not None
        return [worker for worker in self._workers.ready if worker.name not in self._resting]

    def _buckets_of(self, worker: Worker) -> frozenset[int] | None:
        """The hint buckets that are this worker's; None for all."""
        names = tuple(ready.name for ready in self._willing)
        if names == (worker.name,):
            return None
        return frozenset(bucket for bucket, name in enumerate(_takers(names)) if name == worker.name)

    def _submit(self, worker: Worker, job: Job) -> None:
        if (old := self._runs.pop(job.id, None)) is not None:
            # Its lease ran out while it was running: that run holds a stale claim, which the epoch fences off.
            old.drop()
            self._send_cancel(old)
        run = self._runs[job.id] = Run(job, worker.owner)
        self._unseen[worker.name] += 1
        if (prepared := self._preparations.ready(job)) is not None:
            self._send(worker, run, prepared)
        else:
            run.preparing = asyncio.create_task(self._prepare(worker, run))
        if job.id in self._early_cancels:
            self._forward_cancel(job.id)
        self._live.changed(job.id)

    async def _prepare(self, worker: Worker, run: Run) -> None:
        """Fetch what the job names, beside everything else, and pass it on; or end the job with what is wrong.

        Whoever takes the run away meanwhile cancels this.
        """
        job = run.job
        try:
            async with asyncio.timeout(self._start_within_s(job)):
                prepared = await self._preparations.of(job)
            if not isinstance(prepared, Outcome):
                self._send(worker, run, prepared)
                return
        except TimeoutError:
            prepared = platform_outcomes.start_timeout()
        except Exception:
            logger.exception("request %s cannot be prepared", job.id)
            self._end_run(run, self._completion.retry_elsewhere(run))
            return
        self._end_run(run, self._completion.end(run, prepared))

    def _send(self, worker: Worker, run: Run, prepared: Prepared) -> None:
        job = run.job = replace(run.job, params=prepared.params)
        run.timings = prepared.timings
        age_s = max(0.0, self._store.now() - job.created_at)
        wanted_s = job.output.get("done_within_s")
        done_within_s = None if wanted_s is None else max(0.0, wanted_s - age_s)
        limits = self._start_within_s(job), done_within_s
        worker.send(Submit(job.id, job.epoch, prepared.params, job.priority, age_s, *limits, prepared.pictures))
        logger.info("request %s goes to %s, attempt %d, waited %.3f s", job.id, run.owner, job.attempt, age_s)

    def _start_within_s(self, job: Job) -> float | None:
        """What is left of the caller's start deadline."""
        return None if job.start_deadline is None else max(0.0, job.start_deadline - self._store.now())

    def has_room(self) -> bool:
        """Whether any worker would take one more request now."""
        return any(self._room(worker) for worker in self._willing)

    def is_done(self, worker: Worker) -> bool:
        """Whether nothing of what it was given, or is being given, is unfinished."""
        return not (self._claiming.locked() or self.runs_of(worker))

    def held(self, worker: Worker) -> int:
        """Requests that it has been given and has not given back."""
        return sum(run.owner == worker.owner for run in self._runs.values())

    def _room(self, worker: Worker) -> int:
        """How many requests it may be given: none beside one that must run alone."""
        held = [run for run in self._runs.values() if run.owner == worker.owner]
        if any(run.job.deaths for run in held):
            return 0
        preparing = sum(run.is_preparing for run in held)
        loading = sum(_waits_for_its_model(run, worker) for run in held)
        unstarted = sum(not run.has_started for run in held) - preparing - loading
        return max(0, min(AHEAD - unstarted, MAX_PREPARING - preparing - loading))

    def _crowding(self, worker: Worker) -> frozenset[str]:
        """Tenants of which it fetches or loads for at least as many requests as there is room for: they wait, so that
        there always is room for others (the dynamic threshold of shared buffers, Choudhury and Hahne 1998)."""
        held = [run for run in self._runs.values() if run.owner == worker.owner]
        early = Counter(run.job.tenant for run in held if run.is_preparing or _waits_for_its_model(run, worker))
        free = MAX_PREPARING - early.total()
        return frozenset(tenant for tenant, count in early.items() if count >= free)

    def _predicted_load_ms(self, worker: Worker) -> float:
        """What it said it holds, and an average request for each that it cannot have counted yet."""
        beat = worker.heartbeat
        held = beat.running + beat.waiting if beat else 0
        each_ms = beat.load_ms / held if beat and held else 1.0
        return (beat.load_ms if beat else 0.0) + self._unseen[worker.name] * each_ms

    def _forward_cancel(self, job_id: str) -> None:
        run = self._runs.get(job_id)
        if run is not None:
            self._send_cancel(run)
        elif self._claiming.locked():
            # The claim that is being committed now may be of this job.
            self._early_cancels.add(job_id)

    def _send_cancel(self, run: Run) -> None:
        assert self._workers is not None
        if run.is_preparing:
            # The worker does not know it yet.
            run.drop()
            if self._runs.get(run.job.id) is run:
                self._end_run(run, self._completion.cancelled(run, 0))
            return
        for worker in self._workers:
            if worker.owner == run.owner:
                worker.send(Cancel(run.job.id, run.job.epoch))

    async def _renew_and_expire(self) -> None:
        """Renew leases and end what expired, in this order: a node that slept must not take its own for lost."""
        renewed_at = -math.inf
        is_told = False  # as of claims
        while True:
            self._note_room()
            try:
                if time.monotonic() - renewed_at >= RENEW_S:
                    await self._renew()
                    renewed_at = time.monotonic()
                expired = await self._completion.in_thread(partial(self._store.expire, frozenset(self._owners)))
                await self._completion.notify_watchers(expired)
                for job in expired:
                    logger.warning("request %s expired: now %s", job.id, job.status)
                    self._wake.set()
                is_told = False
            except StoreError as exc:
                if not is_told:
                    logger.error("the store refuses to renew leases, it will be tried again: %s", exc)
                is_told = True
            except Exception:
                logger.exception("leases could not be renewed; it will be tried again")
            await asyncio.sleep(TEND_S)

    def _note_room(self) -> None:
        """Tell of room that was there a moment ago, too: whoever waited for it would have taken it."""
        has_room = self._is_accepting and not self._claiming.locked() and self.has_room()
        if has_room and self._had_room:
            self._forecast.note_room()
        self._had_room = has_room

    async def _renew(self) -> None:
        for owner in tuple(self._owners):
            for job in await self._completion.in_thread(partial(self._store.renew, owner, LEASE_S)):
                self._forward_cancel(job.id)

    def _on_loop(self, call: Any, *arguments: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)


def _model_of(job: Job) -> object:
    return (job.params or {}).get("model")


def _waits_for_its_model(run: Run, worker: Worker) -> bool:
    """Whether the worker loads its model, or one that helps it, first, beside the requests for others."""
    model = _model_of(run.job)
    is_on_demand = worker.ready is not None and model in worker.ready.on_demand
    is_loaded = worker.heartbeat is not None and model in worker.heartbeat.loaded
    is_waited_for = run.takes is not None or (is_on_demand and not is_loaded)
    return is_waited_for and not (run.has_started or run.is_preparing)


@lru_cache(maxsize=16)
def _takers(names: tuple[str, ...]) -> tuple[str, ...]:
    """For every hint bucket the worker that bids highest, so that a worker that goes moves only its own buckets."""

    def bid(name: str, bucket: int) -> bytes:
        return hashlib.sha256(f"{name}#{bucket}".encode()).digest()

    return tuple(max(names, key=lambda name: bid(name, bucket)) for bucket in range(HINT_BUCKETS))
