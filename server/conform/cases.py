"""What a numbered case is, and how it ends: it holds, it does not, or it was not asked and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from server.conform.subject import Subject

Ask = Callable[["Subject"], None]
"""Asks a server one case. Raises: Mismatch or NotAsked."""


class Mismatch(Exception):
    """The server did otherwise than the protocol says; the message says what it did."""


class NotAsked(Exception):
    """The case could not be asked of this server, this time; the message says why."""


@dataclass(frozen=True)
class Case:
    """One case of the checklist as a question to any server.

    Args:
        draws: observations of `Subject` that it reads and that draw a picture each, once for all their readers.
        pictures: what it draws beside them, at most.
    """

    number: int
    title: str
    ask: Ask
    draws: tuple[str, ...] = ()
    pictures: int = 0


CASES: dict[int, Case] = {}
"""By number; filled as the modules of `questions` are imported."""


def case(number: int, title: str, *draws: str, pictures: int = 0) -> Callable[[Ask], Ask]:
    """Register a function as the case with this number."""

    def register(ask: Ask) -> Ask:
        assert number not in CASES, number
        CASES[number] = Case(number, title, ask, draws, pictures)
        return ask

    return register


def expect(holds: object, otherwise: str) -> None:
    """Raises: Mismatch with this sentence if it does not hold."""
    if not holds:
        raise Mismatch(otherwise)


def expect_status(answer: httpx.Response, *wanted: int) -> None:
    """Raises: Mismatch that names the call, what it answered and what was wanted."""
    if answer.status_code not in wanted:
        raise Mismatch(f"{described(answer)}, wanted {' or '.join(map(str, wanted))}")


def object_of(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer. Raises: Mismatch."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Mismatch(f"{described(answer)} and a body that is no JSON object")
    return body


def described(answer: httpx.Response) -> str:
    """A call and its status code in a few words."""
    return f"{answer.request.method} {answer.request.url.copy_with(query=None)} answered {answer.status_code}"
