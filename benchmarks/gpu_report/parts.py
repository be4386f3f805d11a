"""Runs the parts of a report one by one: each has a time limit, and whatever breaks one, the others are still run."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from benchmarks.gpu_report.subject import Subject

Figures = dict[str, Any]
"""What a part has found so far; it is filled in as the part goes, so that a part that breaks keeps what it has."""

LEAST_S = 5.0
"""With less time left a part is not begun."""


class OutOfTimeError(Exception):
    """A part took longer than it may."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part. Args: seconds: at most. needs_gpu: it would say nothing elsewhere."""

    name: str
    seconds: float
    run: Callable[[Subject, Figures], None]
    needs_gpu: bool = False


class Report:
    """The figures of all parts, written to report.json whenever one has ended."""

    def __init__(self, subject: Subject, facts: Figures) -> None:
        self._subject = subject
        self._began = time.monotonic()
        self.content: Figures = {**facts, "parts": {}}

    @property
    def left_s(self) -> float:
        return self._subject.options.budget_s - (time.monotonic() - self._began)

    def run(self, parts: Sequence[Part]) -> None:
        only = self._subject.options.only
        for part in parts:
            if not only or part.name in only:
                row: Figures = {}
                self.content["parts"][part.name] = row
                self._one(part, row)
                self.save()
                self._tell(part.name, row)

    def _one(self, part: Part, row: Figures) -> None:
        began, limit = time.monotonic(), min(part.seconds, self.left_s)
        if part.needs_gpu and not self._subject.on_gpu:
            row["skipped"] = "needs a GPU"
        elif limit < LEAST_S:
            row["skipped"] = "no time left"
        else:
            try:
                with _at_most(limit):
                    part.run(self._subject, row)
            except Exception as exc:  # a compiler's or a driver's own errors, too: the report says what broke
                row["broke"] = f"{type(exc).__name__}: {exc}"[:2000]
                row["traceback"] = traceback.format_exc()[-3000:]
            row["seconds"] = round(time.monotonic() - began, 1)
            if self._subject.on_gpu:
                self._subject.forget()  # what the part made and let go

    def _tell(self, name: str, row: Figures) -> None:
        said = {
            key: value for key, value in row.items() if isinstance(value, str | float | bool) and key != "traceback"
        }
        print(f"[{time.monotonic() - self._began:5.0f} s] {name}: {said}", flush=True)

    def save(self) -> None:
        file = self._subject.options.out / "report.json"
        file.write_text(json.dumps(self.content, indent=1, default=str) + "\n")


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises: OutOfTimeError from whatever runs inside, as soon as the interpreter has a say again."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"more than {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def tried(work: Callable[[], Any]) -> Any:
    """What the work returns, or in a line what broke it: one of several figures of a part."""
    try:
        return work()
    except OutOfTimeError:
        raise
    except Exception as exc:  # as above
        return f"{type(exc).__name__}: {exc}"[:300]
