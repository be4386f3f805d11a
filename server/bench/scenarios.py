"""What is asked and when: the requests of every scenario, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

SCENARIOS = {
    "single": "One request after another, for every size and step count.",
    "closed": "So many clients that each ask again as soon as they are answered, for every size and step count.",
    "poisson": "Requests at random moments whatever is still running, for every size and step count.",
    "mixed": "All sizes, step counts and guidance values at once, from so many clients or at a rate.",
}

PROMPTS = ("a red circle on a blue ground", "two green squares", "a small yellow star at the top", "three circles")
GUIDANCE = 3.5
MIXED_GUIDANCE = (2.0, 3.5, 5.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to ask for, `due_s` seconds after the start; None: as soon as a client is free."""

    width: int
    height: int
    steps: int
    guidance: float
    prompt: str
    seed: int
    due_s: float | None = None
    acceleration: str = "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.width, self.height, self.steps


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests that are measured together and make one row of the report.

    Args:
        name: what two reports are compared by.
        clients: how many ask at once; None in an open loop.
        rate: requests a second of an open loop; None until the warm-up has told what the target can do.
        load: share of that which an open loop without a given rate asks for.
    """

    name: str
    asks: tuple[Ask, ...]
    clients: int | None = 1
    rate: float | None = None
    load: float | None = None

    @property
    def shapes(self) -> list[Ask]:
        """One request of every size and step count in it: what the warm-up runs."""
        return list({ask.shape: ask for ask in self.asks}.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run. Sizes are (width, height) in pixels; `count` is requests a cell."""

    scenario: str
    sizes: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    count: int
    clients: int
    rate: float | None
    load: float
    seed: int
    acceleration: str = "none"

    def cells(self) -> list[Cell]:
        """The rows of the report, in order."""
        if self.scenario == "mixed":
            return [self._mixed()]
        return [self._same(size, steps) for size, steps in product(self.sizes, self.steps)]

    def _same(self, size: tuple[int, int], steps: int) -> Cell:
        asks = tuple(self._ask(size, steps, self.seed + index, GUIDANCE) for index in range(self.count))
        return self._with_pace(f"{size[0]}x{size[1]}, {steps} steps", asks)

    def _mixed(self) -> Cell:
        """Every size meets every step count equally often, in an order drawn by the seed."""
        rng = random.Random(self.seed)
        shapes = list(product(self.sizes, self.steps))
        asks: list[Ask] = []
        while len(asks) < self.count:
            rng.shuffle(shapes)
            for size, steps in shapes[: self.count - len(asks)]:
                asks.append(self._ask(size, steps, self.seed + len(asks), rng.choice(MIXED_GUIDANCE)))
        return self._with_pace("mixed", tuple(asks))

    def _ask(self, size: tuple[int, int], steps: int, seed: int, guidance: float) -> Ask:
        return Ask(*size, steps, guidance, prompt(size, steps, seed), seed, acceleration=self.acceleration)

    def _with_pace(self, name: str, asks: tuple[Ask, ...]) -> Cell:
        if self.scenario == "poisson" or (self.scenario == "mixed" and self.rate is not None):
            pace = f"{self.load:.0%} load" if self.rate is None else f"{self.rate:g} a second"
            cell = Cell(f"{name}, {pace}", asks, None, None, self.load)
            return cell if self.rate is None else timed(cell, self.rate, self.seed)
        if self.scenario == "single":
            return Cell(name, asks)
        return Cell(f"{name}, {self.clients} clients", asks, self.clients)


def timed(cell: Cell, rate: float, seed: int) -> Cell:
    """The same requests at random times, `rate` a second on average."""
    rng = random.Random(seed)
    now, asks = 0.0, []
    for ask in cell.asks:
        now += rng.expovariate(rate)
        asks.append(replace(ask, due_s=now))
    return replace(cell, asks=tuple(asks), rate=rate)


def prompt(size: tuple[int, int], steps: int, seed: int) -> str:
    """Never the same twice in a run: a server that keeps encoded prompts must encode these all the same."""
    return f"{PROMPTS[seed % len(PROMPTS)]}, {size[0]}x{size[1]}, {steps} steps, number {seed}"


def parse_numbers(text: str) -> Sequence[int]:
    """Comma-separated whole numbers from 1. Raises: ValueError."""
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers
