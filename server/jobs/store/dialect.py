"""What the databases say differently; everything else is the same SQL in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dialect:
    """Pieces of SQL, with `?` for values.

    Args:
        contains: whether the column `input` contains a text.
        brief: what is read of `outcome` where payloads are not wanted: of pictures only their sizes.
        http_status: of an outcome.
        by_search, by_order: hints for the planner behind `job` and `usage`.
        has_words: which `seq` are found by a question. question: what to ask for these words; empty for nothing.
        note_words: store the words of a prompt by `seq`. words: what is stored for a prompt.
        as_is: where numbers are given to rows, lets a copy keep those that it brings. count_on: statements that then
            go on behind them.
        due_in_turn: the head of the query for webhooks, `due (job_seq, place)`; ?1 is now, ?3 how many of each.
    """

    contains: str
    brief: str
    http_status: str
    by_search: str
    by_order: str
    has_words: str
    question: Callable[[str], str]
    note_words: str
    words: Callable[[str], Any]
    due_in_turn: str
    as_is: str = ""
    count_on: tuple[str, ...] = ()
