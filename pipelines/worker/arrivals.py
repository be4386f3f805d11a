"""Requests on their way from the node to the engine: those whose checkpoints are not in memory wait for them, and only
those."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Frame, Submit, Waits
from pipelines.protocol.params import GenerationParams


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request. Args: takes: names of its checkpoints. told: for which of them it was said to wait."""

    submit: Submit
    takes: tuple[str, ...]
    since: float
    told: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.submit.job_id, self.submit.epoch


class Arrivals:
    """Begins to load what is asked for, one checkpoint at a time, and passes requests on once theirs are there.

    Args: wake: called from another thread when `look` has something to do.
    """

    def __init__(
        self,
        engine: Engine,
        pool: ModelPool,
        wake: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._wake = wake
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._frames: list[Frame] = []
        pool.busy = self._busy

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, submit: Submit) -> None:
        """Take a request; `look` says what becomes of it before the engine has it."""
        each = _Waiting(submit, tuple(map(self._pool.meant, _takes(submit))), self._clock())
        if self._missing(each) is None:
            self._engine.add_request(submit)
        else:
            self._waiting.append(each)

    def abort(self, cancel: Cancel) -> None:
        """Drop a request, here or in the engine."""
        key = (cancel.job_id, cancel.epoch)
        if self._drop(lambda each: each.key == key):
            self._frames.append(Cancelled(*key, 0))
        else:
            self._engine.abort(cancel)

    def look(self) -> list[Frame]:
        """Pass on what has its checkpoints now, begin to load for others, and say what happened since the last call."""
        self._pool.keep_loaded()
        for late in self._drop(self._is_late):
            self._frames.append(Failed(*late.key, "deadline", "the request did not start in time"))
        self._pass_on(partial(self._misses, None))  # all are there, or cannot be loaded
        while self._waiting and not self._pool.is_loading:
            name = self._missing(self._waiting[0])
            if name is not None and self._pool.begin(name, self._wake):
                break
            self._pass_on(partial(self._misses, name))  # it takes turns with what draws now
        self._tell_who_waits()
        frames, self._frames = self._frames, []
        return frames

    def _busy(self) -> set[str]:
        return self._engine.models.union(*(each.takes for each in self._waiting))

    def _missing(self, each: _Waiting) -> str | None:
        """The first of its checkpoints that it waits for."""
        return next((name for name in each.takes if self._pool.waits_for(name)), None)

    def _misses(self, name: str | None, each: _Waiting) -> bool:
        return self._missing(each) == name

    def _is_late(self, each: _Waiting) -> bool:
        within_s = each.submit.start_within_s
        return within_s is not None and self._clock() - each.since >= within_s

    def _drop(self, is_meant: Callable[[_Waiting], bool]) -> list[_Waiting]:
        dropped = [each for each in self._waiting if is_meant(each)]
        self._waiting = [each for each in self._waiting if each not in dropped] if dropped else self._waiting
        return dropped

    def _pass_on(self, is_meant: Callable[[_Waiting], bool]) -> None:
        now = self._clock()
        for each in self._drop(is_meant):
            submit, waited_s = each.submit, now - each.since
            start_s, done_s = (
                None if within_s is None else max(0.0, within_s - waited_s)
                for within_s in (submit.start_within_s, submit.done_within_s)
            )
            left = replace(submit, age_s=submit.age_s + waited_s, start_within_s=start_s, done_within_s=done_s)
            self._engine.add_request(left, waited_s)
            if each.told:
                self._frames.append(Waits(*each.key, ""))

    def _tell_who_waits(self) -> None:
        for each in self._waiting:
            if (name := self._missing(each)) is not None and name != each.told:
                each.told = name
                self._frames.append(Waits(*each.key, name))


def _takes(submit: Submit) -> tuple[str, ...]:
    """Nothing of a request that cannot be read: the engine says why."""
    try:
        return GenerationParams.from_dict(submit.params).models
    except (ValueError, TypeError, KeyError):
        return ()
