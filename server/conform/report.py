"""Asks the cases in their order, within a budget, and reports them by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx
from websockets.exceptions import WebSocketException

from server.conform.cases import CASES, Case, Mismatch, NotAsked
from server.conform.questions import addressing, ends, files, mistakes, queue, runs, sockets
from server.conform.subject import Subject
from server.conform.unasked import UNASKED

MODULES = (addressing, runs, queue, ends, sockets, files, mistakes)
"""Named here, so that every case is registered."""
NUMBERS = range(1, 111)
OUTCOMES = {"holds": "holds", "differs": "DIFFERS", "not_asked": "not asked"}


@dataclass(frozen=True)
class Verdict:
    """How one case ended. Args: why: what the server did otherwise, or why the case was not asked."""

    number: int
    title: str
    outcome: Literal["holds", "differs", "not_asked"]
    why: str = ""

    @property
    def line(self) -> str:
        """One line of the report."""
        return f"{self.number:3}  {OUTCOMES[self.outcome]:9}  {self.title}{f': {self.why}' if self.why else ''}"


def verdict(case: Case, subject: Subject) -> Verdict:
    """Ask one case."""
    try:
        case.ask(subject)
    except Mismatch as exc:
        return Verdict(case.number, case.title, "differs", str(exc))
    except NotAsked as exc:
        return Verdict(case.number, case.title, "not_asked", str(exc))
    except (httpx.HTTPError, httpx.InvalidURL, WebSocketException, OSError) as exc:
        return Verdict(case.number, case.title, "differs", f"{type(exc).__name__}: {exc}")
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        # A body of another shape than the case reads; what it asks for itself has its own words.
        return Verdict(case.number, case.title, "differs", f"an answer has another shape: {type(exc).__name__} {exc}")
    return Verdict(case.number, case.title, "holds")


def pictures(numbers: Collection[int]) -> int:
    """How many pictures these cases draw, at most."""
    asked = [CASES[number] for number in numbers if number in CASES]
    return sum(case.pictures for case in asked) + len({name for case in asked for name in case.draws})


def verdicts(subject: Subject, numbers: Sequence[int], budget: int | None = None) -> Iterator[Verdict]:
    """Ask these cases in their order. Args: budget: pictures; a case that would draw more than is left is not asked."""
    left, drawn = budget, set[str]()
    for number in numbers:
        if number not in CASES:
            title, why = UNASKED[number]
            yield Verdict(number, title, "not_asked", why)
            continue
        case = CASES[number]
        cost = case.pictures + len(set(case.draws) - drawn)
        if left is not None and cost > left:
            yield Verdict(number, case.title, "not_asked", f"it draws {cost}, and {left} pictures are left")
            continue
        left = None if left is None else left - cost
        drawn |= set(case.draws)
        yield verdict(case, subject)


def summary(found: Sequence[Verdict]) -> str:
    """One sentence over all."""
    counts = Counter(one.outcome for one in found)
    return f"{counts['holds']} hold, {counts['differs']} differ, {counts['not_asked']} were not asked, of {len(found)}"


def as_json(subject: Subject, found: Sequence[Verdict]) -> dict[str, Any]:
    """The report for programs."""
    counts = Counter[str](one.outcome for one in found)
    return {
        "server": asdict(subject.areas),
        "endpoint": subject.endpoint,
        "counts": {name: counts[name] for name in OUTCOMES},
        "cases": [asdict(one) for one in found],
    }


def as_markdown(subject: Subject, found: Sequence[Verdict]) -> str:
    """The report as a page."""
    lines = [f"# {subject.areas.run}", "", f"`{subject.endpoint}`: {summary(found)}.", ""]
    lines += ["| case | outcome | what it asks | why |", "|---|---|---|---|"]
    cells = ((str(one.number), OUTCOMES[one.outcome], one.title, one.why) for one in found)
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]
    return "\n".join(lines) + "\n"
