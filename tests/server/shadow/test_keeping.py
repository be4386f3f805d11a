"""What of a request's JSON is kept, and what never."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.shadow.keeping import Keeper
from server.shadow.recording import Entry, Recording, RecordingError
from server.shadow.replay import restored

PNG = b"\x89PNG of a sort"
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def kept(folder: Path, value: Any) -> Any:
    """With an internet of one picture."""

    async def fetch(address: str) -> httpx.Response | None:
        if "picture" not in address:
            return None
        return httpx.Response(200, headers={"content-type": "image/png"}, content=PNG)

    return asyncio.run(Keeper(Recording(folder), fetch).kept(value))


def test_pictures_become_files_once_and_come_back_as_data(tmp_path: Path) -> None:
    asked = {"image_url": "https://a.example/picture.png?token=1", "more": [DATA, {"deep": DATA}], "seed": 1}
    value = kept(tmp_path, asked)
    (file,) = (tmp_path / "files").iterdir()
    assert file.read_bytes() == PNG
    assert value["image_url"] == value["more"][0] == f"recorded:{file.name}"
    assert restored(value, Recording(tmp_path)) == {"image_url": DATA, "more": [DATA, {"deep": DATA}], "seed": 1}


@pytest.mark.parametrize(
    ("value", "is_kept_as"),
    [
        ({"hf_token": "x", "API_KEY": "y", "password": "z"}, {"hf_token": "***", "API_KEY": "***", "password": "***"}),
        ("https://user:pass@a.example/lora.safetensors?sig=1#f", "https://a.example/lora.safetensors"),
        ("see https://a.example/?x=1 for more", "see https://a.example/?x=1 for more"),
        ({"accessToken": "x", "hf-token": "y"}, {"accessToken": "***", "hf-token": "***"}),
        ({"keyboard": "a", "prompt": "a key"}, {"keyboard": "a", "prompt": "a key"}),
        ("data:image/png;base64,###", "data:"),
    ],
)
def test_what_opens_doors_is_not_kept(tmp_path: Path, value: Any, is_kept_as: Any) -> None:
    assert kept(tmp_path, value) == is_kept_as


def test_what_lies_too_deep_is_left_out(tmp_path: Path) -> None:
    value: Any = "bottom"
    for _ in range(900):
        value = [value]
    assert "bottom" not in str(kept(tmp_path, value))


def test_nobody_else_reads_a_recording(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    kept(folder, DATA)
    Recording(folder).keep(Entry("a", "run", "2026", 0.1, None, 200, None, None))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"recording": 0o700, "files": 0o700, "requests.jsonl": 0o600}


def test_entries_come_back_in_the_order_of_their_asking(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "new")
    for hour in (2, 1):
        recording.keep(Entry("a/b", "run", f"2026-01-01T0{hour}:00:00+00:00", 1.0, None, 200, {"n": hour}, {}))
    assert [entry.input["n"] for entry in recording.entries()] == [1, 2]


GOOD = Entry("a/b", "run", "2026", 1.0, None, 200, {"prompt": "a fox"}, {})
WRONG = ("{", "[]", '{"endpoint": "a/b"}', "\xff", "1" * 5000, "[" * 50_000)
WRONG_FIELDS = ({"status": "good"}, {"seconds": None}, {"asked_at": 3}, {"mode": "other"})


@pytest.mark.parametrize("line", [*WRONG, *(json.dumps(asdict(GOOD) | fields) for fields in WRONG_FIELDS)])
def test_a_line_that_is_damaged_is_named(tmp_path: Path, line: str) -> None:
    recording = Recording(tmp_path)
    recording.keep(GOOD)
    with (tmp_path / "requests.jsonl").open("a", encoding="latin-1") as file:
        file.write(line)
    with pytest.raises(RecordingError, match=r"is damaged: line 2: [^\n]+$"):
        recording.entries()


def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="is no recording"):
        Recording(tmp_path / "nowhere").entries()


def test_a_full_disk_leaves_no_half_line_and_no_half_picture(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.keep(GOOD)
    size = (tmp_path / "requests.jsonl").stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limit[1]))  # as on a full disk, a write stops half-way
    try:
        with pytest.raises(OSError, match="space"):
            recording.keep(GOOD)
        with pytest.raises(OSError, match="large"):
            recording.keep_file(bytes(size + 21), "image/png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    recording.keep(GOOD)
    assert recording.entries() == [GOOD, GOOD]
    content = bytes(size + 21)
    assert recording.file(recording.keep_file(content, "image/png"))[0] == content


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"lacks its file passwd"):
        Recording(tmp_path).file("recorded:../../etc/passwd")
