"""Bytes below folders that are counted beside: by one thread, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import threading

from server.files.counted_bytes import CountedBytes
from tests.server.workers.test_process import until

FOLDERS = [f"index/{number}/" for number in range(20)]


def test_one_thread_counts_however_many_folders_there_are() -> None:
    before, goes_on = set(threading.enumerate()), threading.Event()

    def look(folder: str) -> int:
        goes_on.wait(30)
        return len(folder)

    counted = CountedBytes(look)
    assert [counted.of(folder) for folder in FOLDERS] == [0] * len(FOLDERS)
    began = [thread.name for thread in threading.enumerate() if thread not in before]
    goes_on.set()
    asyncio.run(until(lambda: [counted.of(folder) for folder in FOLDERS] == [len(folder) for folder in FOLDERS]))
    assert began == ["objects-count"]


def test_a_folder_that_cannot_be_counted_holds_up_no_other() -> None:
    def look(folder: str) -> int:
        if folder == FOLDERS[0]:
            raise KeyError("LastModified")
        return 7

    counted = CountedBytes(look)
    counted.of(FOLDERS[0])
    asyncio.run(until(lambda: counted.of(FOLDERS[1]) == 7))
    assert counted.of(FOLDERS[0]) == 0
