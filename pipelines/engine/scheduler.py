"""Which pictures take part in the next step. Pure bookkeeping: no torch, no clock, no randomness."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.engine.cost import CostModel
from pipelines.engine.request import Request, Row

_LOOKAHEAD = 16
"""Rows that do not fit after which the search for one that does ends."""

_POSTPONED = 16
"""Requests that are given a later due time in one plan: when a thousand are late at once, no step waits for all."""

_REPLAN_STEPS = 64
"""Steps after which a plan is made anew even if nothing happened: the cost model has learned."""


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one device.

    Args:
        budget_ms: predicted length of a step; a new request or a cancel waits for at most one step. A single
            picture may exceed it.
        max_rows: pictures in a step.
        max_resident: requests that may hold tensors at once; the rest wait as plain values.
        limit: how long a request may take, in times of its own work alone; 0 serves first come, first served.
        growth: by how much a limit grows that cannot be kept any more.
        patience: times of its own work beyond which a limit never grows.
        low_priority_ms: how much later a low-priority request is due.
    """

    budget_ms: float = 250.0
    max_rows: int = 32
    max_resident: int = 64
    limit: float = 3.0
    growth: float = 1.2
    patience: float = 40.0
    low_priority_ms: float = 60_000.0

    def __post_init__(self) -> None:
        if self.growth <= 1.0 or self.patience < self.limit:
            raise ValueError("limits must grow, and begin within patience")


Entry = tuple[float, int, int, Row]
"""(due, arrival number, index, row): the order in which rows are served."""


SwitchMs = Callable[[str], float]
"""What has to be waited for before rows of a group can step: the load of its model where memory does not hold it."""


def no_switch(group: str) -> float:
    """Where every model is in memory."""
    return 0.0


class Scheduler:
    """Earliest due first; a row joins a step where that lowers the mean wait.

    A request is due `limit` times its work after it arrived, so the short overtake the long while the long can spare
    it. One that cannot be on time any more would only make others late, too: its limit grows until it can be kept
    again, but never beyond `patience` times its work. So a request is never overtaken by one that arrives later than
    `patience * work_ms + low_priority_ms` after it, or, where its model has to be loaded first, by as much more as that
    takes: that is the fairness bound. The first row in order always runs, whatever it costs.

    Args: switch_ms: by so much requests of a group count as due later than others.
    """

    def __init__(self, config: SchedulerConfig, cost: CostModel, switch_ms: SwitchMs = no_switch) -> None:
        self.config = config
        self.cost = cost
        self._switch_ms = switch_ms
        self.token_limit: int | None = None
        self._order: list[Entry] = []
        self._plan: tuple[Row, ...] = ()
        self._is_stale = True
        self._plan_age = 0
        self._arrivals = 0
        self._numbers: dict[Request, int] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._resident = 0
        self._group: str | None = None
        self._clean_steps = 0

    @property
    def requests(self) -> int:
        """Requests with steps to go."""
        return len(self._numbers)

    @property
    def running(self) -> int:
        """Requests that hold tensors and have steps to go."""
        return self._resident

    @property
    def load_ms(self) -> float:
        """Predicted milliseconds of everything held, each request alone."""
        return sum(r.steps_left * (self.cost.fixed_ms + self.cost.row_ms(r.tokens)) for r in self._numbers)

    def add(self, request: Request) -> None:
        """Take a request; its rows may be in the next plan."""
        step_ms = self.cost.fixed_ms + self.cost.row_ms(request.tokens)
        request.work_ms = step_ms * request.total_steps
        request.due_ms = self._due(request)
        self._arrivals += 1
        self._numbers[request] = self._arrivals
        for row in request.rows:
            insort(self._order, self._entry(row))
        if request.start_by is not None:
            heapq.heappush(self._deadlines, (request.start_by, self._arrivals, request))
        self._is_stale = True

    def admit(self, request: Request) -> None:
        """The request starts: it takes a place and its start deadline is met."""
        if not request.is_admitted:
            request.is_admitted = True
            self._resident += 1

    def remove(self, request: Request) -> None:
        """Forget a request that failed or was cancelled; unknown ones are ignored."""
        if self._numbers.pop(request, None) is None:
            return
        self._forget(request)
        self._order = [entry for entry in self._order if entry[3].request is not request]
        self._plan = tuple(row for row in self._plan if row.request is not request)

    def expired(self, now: float) -> list[Request]:
        """Remove and return requests whose start deadline has passed before they were admitted."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            if request in self._numbers and not request.is_admitted:
                self.remove(request)
                late.append(request)
        return late

    def plan(self, now: float) -> tuple[Row, ...]:
        """The rows of the next step, all of one group and alike; empty when nothing is left to do.

        The same tuple comes back until something happens that could change it. Args: now: seconds, as arrivals are.
        """
        if self._is_stale or self._plan_age >= _REPLAN_STEPS:
            for row in self._plan:
                insort(self._order, self._entry(row))
            self._is_stale = not self._postpone(now * 1e3)
            self._plan, self._plan_age = self._pick(), 0
        return self._plan

    def reconsider(self) -> None:
        """A row has changed its size: plan anew."""
        self._is_stale = True

    def advance(self, rows: Sequence[Row]) -> list[Row]:
        """One step of `rows` (all or some of the plan) is under way: count it. Returns the rows whose last it is."""
        self._plan_age += 1
        finished = []
        for row in rows:
            row.steps_left -= 1
            row.request.steps_left -= 1
            if row.steps_left == 0:
                finished.append(row)
        if finished:
            self._retire(finished)
        self._recover_limit()
        return finished

    def observe(self, lengths: Sequence[int], ms: float, computed: Sequence[float] | None = None) -> None:
        """A step over pictures of these joint tokens took `ms`; `computed` as in CostModel.observe."""
        self.cost.observe(lengths, ms, computed)

    def out_of_memory(self, rows: Sequence[Row]) -> None:
        """A step over `rows` did not fit: stay below half of its tokens, until many clean steps."""
        self.token_limit = sum(row.tokens for row in rows) // 2
        self._clean_steps = 0
        self._is_stale = True

    def _retire(self, finished: list[Row]) -> None:
        gone = set(map(id, finished))
        self._plan = tuple(row for row in self._plan if id(row) not in gone)
        self._is_stale = True
        for row in finished:
            request = row.request
            if request.steps_left == 0 and self._numbers.pop(request, None) is not None:
                self._forget(request)

    def _forget(self, request: Request) -> None:
        self._is_stale = True
        if request.is_admitted:
            self._resident -= 1

    def _entry(self, row: Row) -> Entry:
        return (row.request.due_ms, self._numbers[row.request], row.index, row)

    def _due(self, request: Request) -> float:
        """When it should be done: by its limit, by its caller's own, or early enough to have started in time."""
        due = 1e3 * request.arrival + self.config.limit * request.work_ms
        if request.start_by is not None:
            due = min(due, 1e3 * request.start_by + request.work_ms)
        if request.done_by is not None:
            due = min(due, 1e3 * request.done_by)
        return due + self.config.low_priority_ms if request.priority else due

    def _postpone(self, now_ms: float) -> bool:
        """Whoever is first but cannot be on time gets a limit that can be kept, and the place that goes with it.

        Returns: whether that is true of the first now; if not, the next plan goes on.
        """
        for _ in range(_POSTPONED):
            if not self._order:
                return True
            request = self._order[0][3].request
            due = self._next_due(request, now_ms)
            if due <= request.due_ms:
                return True
            request.due_ms = due
            rows = []
            while self._order and self._order[0][3].request is request:
                rows.append(self._order.pop(0)[3])
            for row in rows:
                insort(self._order, self._entry(row))
        return False

    def _next_due(self, request: Request, now_ms: float) -> float:
        """The first moment of its growing limits at which it could be done; the last one if there is none."""
        arrival_ms, config = 1e3 * request.arrival, self.config
        allowed, needed = request.due_ms - arrival_ms, now_ms + request.remaining_ms - arrival_ms
        most = config.patience * request.work_ms + (config.low_priority_ms if request.priority else 0.0)
        if needed <= allowed or allowed <= 0.0:
            return request.due_ms
        grown = allowed * config.growth ** math.ceil(math.log(needed / allowed, config.growth))
        return arrival_ms + max(allowed, min(grown, most))

    def _pick(self) -> tuple[Row, ...]:
        """Take rows from the head of the order while they fit and pay."""
        picked: list[Row] = []
        taken: list[int] = []
        skipped = 0
        total_ms, tokens = self.cost.fixed_ms, 0
        newcomers: set[int] = set()
        self._group = self._choose_group()
        for position, (_, _, _, row) in enumerate(self._order):
            request = row.request
            if request.group != self._group or (picked and request.alike != picked[0].request.alike):
                continue
            is_new = not request.is_admitted and id(request) not in newcomers
            row_ms = self.cost.row_ms(row.tokens)
            waiting = len(self._order) - position
            if (is_new and self._resident + len(newcomers) >= self.config.max_resident) or (
                picked and not self._joins(row, picked, total_ms + row_ms, tokens, row_ms, waiting)
            ):
                skipped += 1
                if skipped == _LOOKAHEAD:
                    break
                continue
            picked.append(row)
            taken.append(position)
            total_ms += row_ms
            tokens += row.tokens
            if is_new:
                newcomers.add(id(request))
            if len(picked) == self.config.max_rows:
                break
        for position in reversed(taken):
            del self._order[position]
        return tuple(picked)

    def _choose_group(self) -> str | None:
        """The group of the first row, unless one that needs no load is due after it by less than that load takes."""
        is_full = self._resident >= self.config.max_resident
        first: Entry | None = None
        spare_ms = 0.0
        for entry in self._order:
            request = entry[3].request
            if is_full and not request.is_admitted:
                continue
            if first is None:
                first, spare_ms = entry, self._switch_ms(request.group)
            if entry[0] > first[0] + spare_ms:
                break
            if not self._switch_ms(request.group):
                return request.group
        return first[3].request.group if first else self._group

    def _joins(self, row: Row, picked: list[Row], total_ms: float, tokens: int, row_ms: float, waiting: int) -> bool:
        """Whether the row fits beside those picked and lowers the sum of all waits.

        Left out, it and all rows behind it wait for the fixed cost of one more step; taken along, every row picked
        before it waits `row_ms` longer.
        """
        if total_ms > self.config.budget_ms:
            return False
        if self.token_limit is not None and tokens + row.tokens > self.token_limit:
            return False
        return waiting * self.cost.fixed_ms >= len(picked) * row_ms

    def _recover_limit(self) -> None:
        """The shortage of memory may have passed: allow a tenth more after every 256 steps without one."""
        if self.token_limit is None:
            return
        self._clean_steps += 1
        if self._clean_steps % 256 == 0:
            self.token_limit += self.token_limit // 10
