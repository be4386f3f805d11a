"""What of a job is not durable: log lines, progress, previews, and the futures that wait for its next change.

The store has the record; this says when to look at it again.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipelines.protocol.frames import Preview, Progress

MAX_LOG_ENTRIES = 200
KEEP_ENDED_S = 60.0
"""How long a job that has ended is remembered; its durable log is in its outcome."""
KEEP_S = 3600.0
"""How long any other job is remembered after its last change, if nothing waits for it."""

EXPANDED = "prompt expanded"
"""How the one line begins that may hold what a caller asked for; for that caller only."""


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """When a worker began a job, in Unix seconds, and what its parts took, as it measured them."""

    owner: str
    began_at: float
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiveChange:
    """What happened to a job, for those who have not seen it happen.

    Args: lines: new ones of its log. progress: the latest step. times: who has begun it. starts_over: whether what was
        known of its run goes first. is_whole: whether `lines` is the log from its beginning.
    """

    job_id: str
    lines: tuple[dict[str, Any], ...] = ()
    progress: Progress | None = None
    times: WorkerTimes | None = None
    starts_over: bool = False
    is_whole: bool = False

    def then(self, later: LiveChange) -> LiveChange:
        """Both in one."""
        if later.is_whole:
            return later
        earlier = replace(self, progress=None, times=None) if later.starts_over else self
        return LiveChange(
            self.job_id,
            (*self.lines, *later.lines)[-MAX_LOG_ENTRIES:],
            later.progress or earlier.progress,
            later.times or earlier.times,
            self.starts_over or later.starts_over,
            self.is_whole,
        )


@dataclass
class _Live:
    """What is known of one job."""

    touched_at: float
    version: int = 0
    has_ended: bool = False
    logs: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_LOG_ENTRIES))
    progress: Progress | None = None
    previews: dict[int, Preview] = field(default_factory=dict)
    times: WorkerTimes | None = None
    waiting: set[asyncio.Future[None]] = field(default_factory=set)


def log_entry(message: str, level: str = "INFO", timestamp: str | None = None) -> dict[str, Any]:
    """A line of a log in fal's form, of this moment if none is given."""
    timestamp = timestamp or datetime.now(UTC).isoformat(timespec="microseconds")
    # Twice: fal's Swift client requires `labels`, the JavaScript one reads what stands beside it.
    labels = {"level": level, "source": "USER"}
    return {"message": message, **labels, "labels": labels, "timestamp": timestamp}


class LiveJobs:
    """Changes of jobs, reported from any thread and awaited on any event loop.

    A waiting watcher costs one future; a change costs as much as the job has watchers.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, _Live] = {}
        # One counter for all jobs: a job that was forgotten never repeats a version that a watcher has seen.
        self._versions = itertools.count(1)
        self._on_end: list[Callable[[str], None]] = []
        self._on_change: Callable[[LiveChange], None] = lambda change: None
        self._on_begin: Callable[[str], None] = lambda job_id: None

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every job that ends, on whatever thread it ends."""
        self._on_end.append(listener)

    def on_change(self, listener: Callable[[LiveChange], None]) -> None:
        """Call `listener` with every line and step that is reported here, on whatever thread it is."""
        self._on_change = listener

    def on_begin(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every job that a worker begins, here or at another node, on any thread."""
        self._on_begin = listener

    def take(self, change: LiveChange) -> None:
        """Note what was reported to another node."""
        before = self.times(change.job_id)
        self._change(change.job_id, partial(_apply, change))
        # A change that was too long to be told in one piece says so in each; a whole log is told to newcomers, too.
        if change.times not in (None, before) and not (change.is_whole and before is None):
            self._on_begin(change.job_id)

    def whole(self, owners: str) -> list[LiveChange]:
        """All that is known of the jobs that run with workers whose owner's name begins so."""
        with self._lock:
            return [
                LiveChange(job_id, tuple(live.logs), live.progress, live.times, starts_over=True, is_whole=True)
                for job_id, live in self._jobs.items()
                if live.times is not None and not live.has_ended and live.times.owner.startswith(owners)
            ]

    def log(self, job_id: str, message: str, level: str = "INFO") -> None:
        """Add a line to the job's log, in fal's form."""
        self._report(LiveChange(job_id, (log_entry(message, level),)))

    def step(self, frame: Progress) -> None:
        """One more step is done; logged as such."""
        self._report(LiveChange(frame.job_id, (log_entry(f"step {frame.step}/{frame.num_steps}"),), frame))

    def note_begun(self, job_id: str, owner: str, now: float) -> None:
        """A worker has begun it."""
        self._report(LiveChange(job_id, times=WorkerTimes(owner, now)))

    def note_timings(self, job_id: str, timings: Mapping[str, float]) -> None:
        """The worker is done with it."""

        def take(live: _Live) -> None:
            if live.times is not None:
                live.times = replace(live.times, timings=dict(timings))

        self._change(job_id, take)

    def times(self, job_id: str) -> WorkerTimes | None:
        """What its last run took; None if no worker has begun it."""
        with self._lock:
            live = self._jobs.get(job_id)
            return None if live is None else live.times

    def show(self, frame: Preview) -> None:
        """Keep the latest preview of that image."""

        def take(live: _Live) -> None:
            live.previews[frame.index] = frame

        self._change(frame.job_id, take)

    def start_over(self, job_id: str) -> None:
        """Forget progress and previews: the job will run from the beginning again. Its log stays.

        A line that says why comes before: other nodes are told both at once."""
        self._report(LiveChange(job_id, starts_over=True))

    def changed(self, job_id: str) -> None:
        """Something about this job is different, in the store or here."""
        self._change(job_id, lambda live: None)

    def changed_elsewhere(self, job_id: str, has_ended: bool) -> None:
        """Another node has changed it: watchers look again. What is not known here has none."""
        with self._lock:
            if job_id not in self._jobs:
                return

        def take(live: _Live) -> None:
            live.has_ended = has_ended

        self._change(job_id, take)

    def ended(self, job_id: str) -> None:
        """The store has recorded its end: watchers look a last time, and the job is forgotten here soon after."""

        def end(live: _Live) -> None:
            live.has_ended = True
            live.previews.clear()

        self._change(job_id, end)
        for listener in self._on_end:
            listener(job_id)

    def logs(self, job_id: str) -> list[dict[str, Any]]:
        """The lines so far, oldest first, at most MAX_LOG_ENTRIES."""
        with self._lock:
            live = self._jobs.get(job_id)
            return [] if live is None else list(live.logs)

    def progress(self, job_id: str) -> Progress | None:
        """The latest step, if it runs here."""
        with self._lock:
            live = self._jobs.get(job_id)
            return None if live is None else live.progress

    def preview(self, job_id: str, index: int = 0) -> Preview | None:
        """The latest preview of image `index`."""
        with self._lock:
            live = self._jobs.get(job_id)
            return None if live is None else live.previews.get(index)

    def version(self, job_id: str) -> int:
        """A number that differs after every change; 0 for a job to which nothing happened."""
        with self._lock:
            live = self._jobs.get(job_id)
            return 0 if live is None else live.version

    async def wait(self, job_id: str, seen: int, timeout_s: float | None) -> int:
        """Return the version as soon as it is not `seen`, or whatever it is after `timeout_s`."""
        with self._lock:
            live = self._jobs.setdefault(job_id, _Live(self._clock()))
            if live.version != seen:
                return live.version
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            live.waiting.add(woken)
        try:
            async with asyncio.timeout(timeout_s):
                await woken
        except TimeoutError:
            pass
        finally:
            with self._lock:
                live.waiting.discard(woken)
        return live.version

    def forget_old(self) -> None:
        """Drop jobs that have been still for long enough and that nobody watches."""
        now = self._clock()
        with self._lock:
            for job_id, live in list(self._jobs.items()):
                kept_s = KEEP_ENDED_S if live.has_ended else KEEP_S
                if live.touched_at < now - kept_s and not live.waiting:
                    del self._jobs[job_id]

    def _report(self, change: LiveChange) -> None:
        self.take(change)
        self._on_change(change)

    def _change(self, job_id: str, edit: Callable[[_Live], object]) -> None:
        with self._lock:
            live = self._jobs.setdefault(job_id, _Live(self._clock()))
            edit(live)
            live.version = next(self._versions)
            live.touched_at = self._clock()
            waiting, live.waiting = live.waiting, set()
        for loop in {woken.get_loop() for woken in waiting}:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, [woken for woken in waiting if woken.get_loop() is loop])


def _apply(change: LiveChange, live: _Live) -> None:
    if change.starts_over:
        live.progress = live.times = None
        live.previews.clear()
    if change.is_whole:
        live.logs.clear()
    live.logs.extend(change.lines)
    live.progress = change.progress or live.progress
    live.times = change.times or live.times


def _wake(waiting: Iterable[asyncio.Future[None]]) -> None:
    for woken in waiting:
        if not woken.done():
            woken.set_result(None)
