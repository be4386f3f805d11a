"""What is asked of the systems: mixed requests, and when they come."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path

from models.shapes.scenes import COLOURS, SHAPES
from pipelines.protocol.params import GenerationParams

SIZES = ((256, 256), (512, 512), (1024, 768), (1024, 1024))
STEPS = (4, 12, 20, 28, 50)
GUIDANCE = (2.0, 3.5, 5.0)
TRACE = Path(__file__).with_name("bursts.txt")
"""Gaps between requests, one a line, of mean 1: some ten come four times as fast, then some seven at half the rate."""


@dataclass(slots=True)
class Job:
    """One request of the load and when things happened to it, in seconds from the start."""

    params: GenerationParams
    arrival: float = 0.0
    done: float = 0.0

    @property
    def latency(self) -> float:
        return self.done - self.arrival


def make_jobs(count: int, seed: int, model: str, shrink: int = 1) -> list[Job]:
    """Mixed requests; every size meets every step count equally often. Args: shrink: of all sides."""
    rng = random.Random(seed)
    cells = [(size, steps) for size in SIZES for steps in STEPS]
    jobs: list[Job] = []
    while len(jobs) < count:
        rng.shuffle(cells)
        for (width, height), steps in cells[: count - len(jobs)]:
            guidance, prompt = rng.choice(GUIDANCE), _prompt(rng)
            sides = width // shrink, height // shrink
            jobs.append(Job(GenerationParams(model, prompt, *sides, steps, guidance, len(jobs))))
    return jobs


def _prompt(rng: random.Random) -> str:
    """One of some two thousand, so that hardly any is found encoded already."""
    colours = list(COLOURS)
    return f"a {rng.choice(colours)} {rng.choice(SHAPES)} on a {rng.choice(colours)} background"


def poisson(jobs: Sequence[Job], rate: float, seed: int) -> list[Job]:
    """The same jobs at random times, `rate` a second."""
    rng = random.Random(seed)
    return _after(jobs, (rng.expovariate(rate) for _ in jobs))


def bursts(jobs: Sequence[Job], rate: float) -> list[Job]:
    """The same jobs as the recorded trace has them come, `rate` a second on the average."""
    gaps = [float(line) for line in TRACE.read_text().split()]
    return _after(jobs, (gap / rate for gap, _ in zip(cycle(gaps), jobs, strict=False)))


def _after(jobs: Sequence[Job], gaps: Iterable[float]) -> list[Job]:
    return [Job(job.params, moment) for job, moment in zip(jobs, accumulate(gaps), strict=True)]
