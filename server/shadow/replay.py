"""The requests of a recording asked again, of another server, and both answers compared."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from server.conform.areas import Areas
from server.shadow.asking import End, ask
from server.shadow.compare import Comparison, compare_pictures, differences
from server.shadow.keeping import Fetch, fetching
from server.shadow.recording import MARK, Entry, Recording


@dataclass(frozen=True)
class Replayed:
    """Args: before, now: contents of the pictures, in pairs; None for one that is not to be had."""

    comparison: Comparison
    before: tuple[bytes | None, ...]
    now: tuple[bytes | None, ...]


async def replay(
    recording: Recording, entries: list[Entry], areas: Areas, key: str | None, at_once: int
) -> AsyncIterator[Replayed]:
    """Each request in its turn, `at_once` of them under way. Raises: RecordingError if a file of it is missing."""
    headers = {"authorization": f"Key {key}"} if key else {}
    turns = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10)) as http:
        fetch = fetching(http, httpx.URL(areas.run), headers)

        async def one(entry: Entry) -> Replayed:
            async with turns:
                body = restored(entry.input, recording)
                end, took = await ask(http, areas, entry.mode, entry.endpoint, body, headers)
                return await _compared(recording, entry, end, took, fetch)

        tasks = [asyncio.create_task(one(entry)) for entry in entries]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _compared(recording: Recording, entry: Entry, end: End, took: float, fetch: Fetch) -> Replayed:
    before = [recording.file(mark)[0] for mark in _texts(entry.answer) if mark.startswith(MARK)]
    now = await _pictures(end.answer, fetch)
    pairs = list(itertools.zip_longest(before, now))
    lost, gained = differences(entry, end)
    pictures = tuple(compare_pictures(*pair) for pair in pairs)
    comparison = Comparison(entry, end, took, lost, gained, pictures)
    return Replayed(comparison, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


async def _pictures(answer: Any, fetch: Fetch) -> list[bytes]:
    """What the addresses and data URIs of an answer lead to, as far as they are pictures."""
    found = []
    for text in _texts(answer):
        if text.startswith("data:image/"):
            found.append(_decoded(text.partition(",")[2]))
        elif text.startswith(("http://", "https://")) and (file := await fetch(text)) is not None:
            found.append(file.content)
    return found


def _decoded(text: str) -> bytes:
    """Nothing for what is no base64, which is no picture either."""
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


def restored(value: Any, recording: Recording) -> Any:
    """An input as it was, with its files as data URIs. Raises: RecordingError."""
    if isinstance(value, dict):
        return {name: restored(each, recording) for name, each in value.items()}
    if isinstance(value, list):
        return [restored(each, recording) for each in value]
    if not (isinstance(value, str) and value.startswith(MARK)):
        return value
    content, content_type = recording.file(value)
    return f"data:{content_type};base64,{base64.b64encode(content).decode()}"


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)
