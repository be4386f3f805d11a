"""Usage as a table for spreadsheets: RFC 4180, one line a day, tenant, endpoint, key and label."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from server.api.accounts import iso
from server.api.prices import Prices
from server.jobs.store.accounts import DAY_S, Usage, UsageQuestion
from server.jobs.store.base import Store

COLUMNS = (
    "day", "tenant", "endpoint_id", "auth_method", "label", "requests", "failures", "images", "megapixels",
    "gpu_seconds", "cost", "currency",
)  # fmt: skip
AT_ONCE = 1000
"""Rows that are read and written together."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes text for a formula; labels are what callers write."""


def lines(store: Store, question: UsageQuestion, prices: Prices) -> Iterator[str]:
    """The table, piece by piece. An empty `day` is a sum over all that were asked for."""
    yield _csv([COLUMNS])
    offset = 0
    while rows := store.usage(question, AT_ONCE, offset):
        yield _csv([_line(row, prices) for row in rows])
        offset += len(rows)


def _line(row: Usage, prices: Prices) -> tuple[object, ...]:
    day = "" if row.day is None else iso(row.day * DAY_S)[:10]
    names = (_plain(text) for text in (row.tenant, row.endpoint, row.key_id, row.value))
    cost = prices.cost(row.endpoint, row.units)
    return (
        day, *names, row.requests, row.failures, row.images, row.units, round(row.seconds, 3), cost, prices.currency
    )  # fmt: skip


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
