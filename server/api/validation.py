"""pydantic's errors as fal's `detail` entries: one clear entry a fault."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.api.errors import InputError, Problem, problem

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
"""JSON numbers beyond it are read as floats, which pydantic does not take for an integer."""


def input_error(exc: ValidationError) -> InputError:
    """All faults of one input."""
    return InputError([_problem(entry) for entry in exc.errors(include_url=False)])


def _problem(entry: ErrorDetails) -> Problem:
    # Alternatives of a union are tagged <like this>; the caller knows only the field.
    loc = [part for part in entry["loc"] if not (isinstance(part, str) and part.startswith("<"))]
    ctx = _plain(entry.get("ctx"))
    if entry["type"] == "int_parsing_size":
        # pydantic names neither the field's limits, which it did not get to, nor its own.
        msg = f"Input should be a whole number from {_MIN_INT} to {_MAX_INT}"
        # Its input has been rounded to a float: not what the caller sent.
        return problem(loc, msg, entry["type"], {"ge": _MIN_INT, "le": _MAX_INT})
    if entry["type"] == "missing":
        # Its input is its parent: nothing that helps, and perhaps large.
        return problem(loc, entry["msg"], entry["type"], ctx)
    return problem(loc, entry["msg"], entry["type"], ctx, entry["input"])


def _plain(ctx: dict[str, Any] | None) -> dict[str, Any] | None:
    """Context values as JSON: pydantic may put exception objects there."""
    if ctx is None:
        return None
    return {key: value if isinstance(value, str | int | float | list) else str(value) for key, value in ctx.items()}
