"""Output that nobody reads, or nobody reads any more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli import output
from server.cli.output import PatientWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, PatientWriter]]:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    yield reading, PatientWriter(stream)
    with contextlib.suppress(OSError):
        os.close(reading)
    stream.close()


def test_what_is_written_arrives_in_order(pipe: tuple[int, PatientWriter]) -> None:
    reading, writer = pipe
    for number in range(100):
        print(number, file=writer)
    writer.finish()
    assert os.read(reading, 10_000).decode().split() == [str(number) for number in range(100)]


def test_a_reader_that_stalls_holds_up_nobody_and_hears_what_he_missed(pipe: tuple[int, PatientWriter]) -> None:
    reading, writer = pipe
    for _ in range(output.MAX_PIECES + 5000):  # a pipe holds some 600 of them
        writer.write("x" * 100 + "\n")
    writer.finish()
    text = ""
    while "were dropped" not in text:
        text = text[-200:] + os.read(reading, 1 << 20).decode()
    writer.write("again\n")
    writer.finish()
    assert "again" in (text + os.read(reading, 1 << 20).decode())


def test_a_reader_who_left_is_no_error(pipe: tuple[int, PatientWriter]) -> None:
    reading, writer = pipe
    os.close(reading)
    for _ in range(10):
        writer.write("nobody\n")
        writer.finish()
    assert writer._is_lost
    assert os.readlink(f"/proc/self/fd/{writer._stream.fileno()}") == str(Path(os.devnull))
