"""What bytes that got the better of a decoder could still do in its process."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path
from typing import Any

import pytest

from server.files.confinement import MEMORY_BYTES, OPEN_FILES
from server.files.decoding import Limits, PictureError, decode
from server.files.picture_pool import PicturePool


def hoard(size: int) -> int:
    return len(bytearray(size))


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"x")


def open_many(number: int) -> int:
    return len([open("/dev/null", "rb") for _ in range(number)])


def in_pool(function: Any, *arguments: Any) -> Any:
    async def main() -> Any:
        pool = PicturePool()
        try:
            return await pool.run(function, *arguments)
        finally:
            pool.close(wait=True)

    return asyncio.run(main())


def test_a_decoder_gets_bounded_memory() -> None:
    assert in_pool(hoard, 1 << 20) == 1 << 20
    with pytest.raises(MemoryError):
        in_pool(hoard, MEMORY_BYTES)


def test_a_decoder_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too large"):
        in_pool(write, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == b""


def test_a_decoder_opens_few_files() -> None:
    with pytest.raises(OSError, match="Too many open files"):
        in_pool(open_many, OPEN_FILES)


def test_a_bomb_costs_its_sender_a_refusal() -> None:
    """60 KB that say they are 20,000 x 20,000 pixels, and would be."""
    rows = zlib.compress(bytes(60_000_000), 9)

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    size = (20_000).to_bytes(4, "big") * 2
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(PictureError) as caught:
        in_pool(decode, bomb, Limits())
    assert caught.value.kind == "image_too_large"
