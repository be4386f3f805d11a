"""Which adapters a call of a linear meets, row by row: said around a forward, read by every `AdaptedLinear` in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import groupby
from typing import Literal, Protocol, TypeVar, cast

from pipelines.adapters.adapter import Uses

Stream = Literal["text", "image", "joint", "row"]
"""What the rows of a linear's input are: tokens of one of a pack's three lists, or one vector a picture."""
Segment = tuple[int, int | None, Uses]
"""First row, the row after the last, and the adapters between."""
Segments = Mapping[Stream, tuple[Segment, ...]]

NOTHING: Segments = {}

F = TypeVar("F", bound=Callable[..., object])


class Layout(Protocol):
    """How a pack lies in its lists of rows."""

    @property
    def segments(self) -> Segments:
        """Where which adapters take part."""


_BOUND: ContextVar[Segments] = ContextVar("segments", default=NOTHING)


def bound_to(stream: Stream) -> tuple[Segment, ...]:
    """The segments of the forward that runs now in this thread."""
    return _BOUND.get().get(stream, ())


@contextmanager
def bound(segments: Segments) -> Iterator[None]:
    """Linears called inside, in this thread, meet these segments."""
    token = _BOUND.set(segments)
    try:
        yield
    finally:
        _BOUND.reset(token)


def inside(forward: F) -> F:
    """For parts of a forward over a pack, (model, layout, ...): run each bound to its layout's segments."""

    @wraps(forward)
    def run(model: object, layout: Layout, *args: object) -> object:
        with bound(layout.segments):
            return forward(model, layout, *args)

    return cast("F", run)


def everywhere(uses: Uses) -> Segments:
    """All rows of every input belong to one request."""
    whole: tuple[Segment, ...] = ((0, None, uses),)
    return {"text": whole, "image": whole, "joint": whole, "row": whole} if uses else NOTHING


def by_picture(uses: Sequence[Uses], lengths: Mapping[Stream, Sequence[int]]) -> Segments:
    """Each picture brings its own, over so many rows in each list; neighbours with equal ones share a segment."""
    if not any(uses):
        return NOTHING
    return {stream: tuple(_segments(uses, counts)) for stream, counts in lengths.items()}


def _segments(uses: Sequence[Uses], counts: Sequence[int]) -> Iterator[Segment]:
    start = 0
    for same, group in groupby(zip(uses, counts, strict=True), key=lambda pair: pair[0]):
        stop = start + sum(count for _, count in group)
        if same and stop > start:
            yield start, stop, same
        start = stop
