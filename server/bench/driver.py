"""Runs one cell against a target and notes when things happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from server.bench.scenarios import Ask, Cell, timed
from server.bench.target import AskError, BenchError, Target

OnDone = Callable[[int, int], None]
"""(requests ended, of so many); the warm-up counts too"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Moments in seconds from the start of its cell.

    Args:
        due_s: when it should have been sent; in a closed loop, when it was.
        sent_s: when it was; later only if this process was late.
        stages: seconds by stage as the target told them.
        error: why there was no picture.
    """

    ask: Ask
    due_s: float
    sent_s: float
    done_s: float
    stages: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def latency_s(self) -> float:
        """From the moment it was due: what somebody who asked then had to wait."""
        return self.done_s - self.due_s


@dataclass(frozen=True, slots=True)
class Run:
    """A cell and what came of it. `warmup_s`: latencies before anything was counted."""

    cell: Cell
    warmup_s: tuple[float, ...]
    samples: tuple[Sample, ...]


async def warm_up(target: Target, cell: Cell, times: int, on_done: OnDone) -> tuple[float, ...]:
    """Every shape of the cell so many times, one after the other. Returns seconds each.

    Raises: BenchError if not even that works.
    """
    asks = [replace(ask, prompt=f"{ask.prompt}, warm-up {i}") for ask in cell.shapes for i in range(times)]
    latencies = []
    for number, ask in enumerate(asks, 1):
        began = time.perf_counter()
        try:
            await target.generate(ask)
        except AskError as exc:
            raise BenchError(f"{ask.width}x{ask.height} with {ask.steps} steps: {exc}") from exc
        latencies.append(time.perf_counter() - began)
        on_done(number, len(asks) + len(cell.asks))
    return tuple(latencies)


def paced(cell: Cell, warmup_s: tuple[float, ...], seed: int) -> Cell:
    """An open loop at a share of what the target does one at a time, as the warm-up told; others unchanged."""
    if cell.clients is not None or cell.rate is not None or cell.load is None:
        return cell
    if not warmup_s:
        raise BenchError("give --rate, or a --warmup from which the rate is found")
    # The first of every shape may have compiled something.
    each = len(warmup_s) // len(cell.shapes)
    warm = warmup_s if each < 2 else tuple(s for index, s in enumerate(warmup_s) if index % each)
    return timed(cell, cell.load * len(warm) / sum(warm), seed)


async def measure(target: Target, cell: Cell, on_done: OnDone) -> tuple[Sample, ...]:
    """All requests of a cell, in the order in which they ended. Raises: BenchError if the target is lost."""
    samples: list[Sample] = []
    start = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - start

    async def one(ask: Ask) -> None:
        sent = now()
        due = sent if ask.due_s is None else ask.due_s
        stages: dict[str, float] = {}
        error = None
        try:
            stages = await target.generate(ask)
        except AskError as exc:
            error = str(exc)
        samples.append(Sample(ask, due, sent, now(), stages, error))
        on_done(len(samples), len(cell.asks))

    loop = _closed_loop(cell, one) if cell.clients is not None else _open_loop(cell, one, now)
    try:
        await loop
    except ExceptionGroup as group:
        # All of them say the same: the worker died, or the key is refused.
        raise next((exc for exc in group.exceptions if isinstance(exc, BenchError)), group) from None
    return tuple(samples)


async def _closed_loop(cell: Cell, one: Callable[[Ask], object]) -> None:
    left = iter(cell.asks)

    async def client() -> None:
        for ask in left:
            await one(ask)  # type: ignore[misc]

    async with asyncio.TaskGroup() as group:
        for _ in range(cell.clients or 1):
            group.create_task(client())


async def _open_loop(cell: Cell, one: Callable[[Ask], object], now: Callable[[], float]) -> None:
    async with asyncio.TaskGroup() as group:
        for ask in cell.asks:
            await asyncio.sleep(max(0.0, (ask.due_s or 0.0) - now()))
            group.create_task(one(ask))  # type: ignore[arg-type]
