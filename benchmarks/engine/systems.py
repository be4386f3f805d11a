"""The systems that are compared, each driven by the same requests at the same times."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import torch

from benchmarks.engine.load import STEPS, Job
from models.accelerator import Accelerator
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.runner import Runner
from pipelines.engine.scheduler import SchedulerConfig
from pipelines.protocol.frames import Failed, Finished, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.figures import percentile

WINDOW_S = 0.05
MAX_KEYED = 8
LIMITS = (1.5, 3.0, 5.0)
"""A request's limit in times of what it takes alone; the share that keeps it is a system's attainment."""

Alone = Callable[[GenerationParams], float]
"""Seconds that `stock` takes for one request by itself."""


def within(limit: float) -> str:
    """The name of an attainment among the figures."""
    return f"within_{limit:g}x"


class Clock:
    """Time without the gaps in which nothing is left to do.

    Processor time instead of real time is what one core of its own would take: the clock for a shared CPU.
    """

    source: Callable[[], float] = time.perf_counter

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        return Clock.source() + self._skipped

    def skip_to(self, moment: float) -> None:
        self._skipped += max(0.0, moment - self())


@dataclass(slots=True)
class Outcome:
    """What one system did with one load."""

    jobs: list[Job] = field(default_factory=list)
    busy_s: float = 0.0
    span_s: float = 0.0
    processor_s: float = 0.0

    def figures(self, alone: Alone) -> dict[str, float]:
        latencies = [job.latency for job in self.jobs]
        short = [job.latency for job in self.jobs if job.params.num_inference_steps == min(STEPS)]
        return {
            "images_per_s": len(self.jobs) / self.span_s,
            "mean_s": mean(latencies),
            "p50_s": percentile(latencies, 0.5),
            "p95_s": percentile(latencies, 0.95),
            "p99_s": percentile(latencies, 0.99),
            "p95_4_steps_s": percentile(short, 0.95) if short else 0.0,
            "slowdown": mean(job.latency / alone(job.params) for job in self.jobs),
            "processor_s_per_image": self.processor_s / len(self.jobs),
            "busy": min(1.0, self.busy_s / self.span_s),
            **{within(limit): self.attainment(alone, limit) for limit in LIMITS},
        }

    def attainment(self, alone: Alone, limit: float) -> float:
        """The share of requests that took no longer than `limit` times what they take alone."""
        return mean(job.latency <= limit * alone(job.params) for job in self.jobs)


class Source:
    """Hands out the jobs of one load: at their times, or as earlier ones end (closed loop)."""

    def __init__(self, jobs: Sequence[Job], clients: int | None) -> None:
        self._left = deque(jobs)
        self._clients = clients
        self.running = 0

    def take(self, now: float) -> list[Job]:
        """The jobs that have arrived by now."""
        taken: list[Job] = []
        while self._left and self._has_arrived(now):
            job = self._left.popleft()
            if self._clients is not None:
                job.arrival = now
            taken.append(job)
            self.running += 1
        return taken

    def end(self, job: Job, now: float) -> None:
        job.done = now
        self.running -= 1

    @property
    def next_arrival(self) -> float | None:
        return self._left[0].arrival if self._left else None

    def _has_arrived(self, now: float) -> bool:
        if self._clients is not None:
            return self.running < self._clients
        return self._left[0].arrival <= now


class Stock:
    """diffusers' pipeline of the family, first come first served; with `window_s`, equal requests go together."""

    def __init__(self, components: Any, window_s: float | None = None) -> None:
        self._components = components
        self.pipeline = components.pipeline()
        self._takes_length = "max_sequence_length" in inspect.signature(self.pipeline.__call__).parameters
        self._window_s = window_s

    def run(self, source: Source) -> Outcome:
        clock, outcome, waiting = Clock(), Outcome(), deque[Job]()
        start, processor = clock(), time.process_time()
        while True:
            waiting.extend(source.take(clock() - start))
            if not waiting:
                if source.next_arrival is None:
                    break
                clock.skip_to(start + source.next_arrival)
                continue
            batch = self._batch(waiting, source, clock, start)
            began = clock()
            self.generate([job.params for job in batch])
            outcome.busy_s += clock() - began
            for job in batch:
                source.end(job, clock() - start)
                outcome.jobs.append(job)
        outcome.span_s = clock() - start
        outcome.processor_s = time.process_time() - processor
        return outcome

    def _batch(self, waiting: deque[Job], source: Source, clock: Clock, start: float) -> list[Job]:
        first = waiting.popleft()
        if self._window_s is None:
            return [first]
        # The window opens when the oldest arrived; arrivals inside it are waited for.
        closes = first.arrival + self._window_s
        while source.next_arrival is not None and source.next_arrival <= closes and clock() - start < closes:
            clock.skip_to(start + source.next_arrival)
            arrived = source.take(clock() - start)
            waiting.extend(arrived)
            if not arrived:
                break
        if clock() - start < closes:
            clock.skip_to(start + closes)
        same = [job for job in waiting if _key(job.params) == _key(first.params)][: MAX_KEYED - 1]
        for job in same:
            waiting.remove(job)
        return [first, *same]

    @torch.inference_mode()
    def generate(self, batch: Sequence[GenerationParams]) -> None:
        params = batch[0]
        limit = self._components.spec.max_sequence_length
        self.pipeline(
            prompt=[each.prompt for each in batch],
            width=params.width,
            height=params.height,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            generator=[torch.Generator().manual_seed(each.seed) for each in batch],
            **({"max_sequence_length": min(params.max_sequence_length, limit)} if self._takes_length else {}),
        )


def _key(params: GenerationParams) -> tuple[object, ...]:
    return params.width, params.height, params.num_inference_steps, params.guidance_scale


class Ours:
    """This engine. With `same_size`, as step batching of equal shapes would run it."""

    def __init__(self, runner: Runner, accelerator: Accelerator, same_size: bool = False) -> None:
        self._runner = runner
        self._accelerator = accelerator
        self._same_size = same_size
        fifo = SchedulerConfig(budget_ms=1e9, max_rows=MAX_KEYED, limit=0.0)
        self.config = EngineConfig(scheduler=fifo if same_size else SchedulerConfig())

    def run(self, source: Source) -> Outcome:
        clock, outcome = Clock(), Outcome()
        ready = threading.Event()
        engine = Engine(self._runner_for, self._accelerator, self.config, clock, ready.set)
        jobs: dict[str, Job] = {}
        start, processor = clock(), time.process_time()
        while True:
            for job in source.take(clock() - start):
                name = str(len(jobs))
                jobs[name] = job
                engine.add_request(Submit(name, 0, self._grouped(job.params).to_dict()))
            if not engine.has_work:
                if source.next_arrival is None:
                    break
                clock.skip_to(start + source.next_arrival)
                continue
            began, steps = clock(), engine.steps
            frames = engine.step(wait=False)
            if not frames and engine.steps == steps:
                ready.wait(0.02 if self._accelerator.notifies else 0.001)
                ready.clear()
            outcome.busy_s += clock() - began
            for frame in frames:
                assert not isinstance(frame, Failed), frame
                if isinstance(frame, Finished):
                    source.end(jobs[frame.job_id], clock() - start)
                    outcome.jobs.append(jobs[frame.job_id])
        outcome.span_s = clock() - start
        outcome.processor_s = time.process_time() - processor
        return outcome

    def _runner_for(self, name: str) -> Runner:
        return self._runner

    def _grouped(self, params: GenerationParams) -> GenerationParams:
        """Rows of different models never share a step: name the size as one."""
        return replace(params, model=f"{params.width}x{params.height}") if self._same_size else params


def alone_times(stock: Stock, jobs: Sequence[Job]) -> Alone:
    """What `stock` takes for one request by itself, by size and steps: the better of two tries, warm."""
    shapes = {(job.params.width, job.params.height, job.params.num_inference_steps): job.params for job in jobs}
    times = {shape: min(_timed(stock, params) for _ in range(2)) for shape, params in shapes.items()}
    return lambda params: times[params.width, params.height, params.num_inference_steps]


def _timed(stock: Stock, params: GenerationParams) -> float:
    began = Clock.source()
    stock.generate([params])
    return Clock.source() - began
