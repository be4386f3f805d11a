"""What holds of stored files wherever they are kept: the same tests over a folder and a bucket."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from server.files.choice import open_objects
from server.files.objects import Access, Objects
from tests.server.s3_service import S3Service
from tests.server.stores import Clock

DATA = bytes(range(256)) * 40


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Objects:
    if request.param == "folder":
        return open_objects(tmp_path / "files", None, clock=clock)
    service: S3Service = request.getfixturevalue("s3")
    return open_objects(tmp_path / "files", service.new_url(), service.endpoint, clock=clock)


@pytest.mark.parametrize("data", [DATA, BytesIO(DATA), b""])
def test_what_was_put_is_read_in_pieces(objects: Objects, data: bytes | BytesIO, tmp_path: Path) -> None:
    whole = data if isinstance(data, bytes) else data.getvalue()
    key = objects.put(data, "image/png", "png", file_name="größe 🎈 ../x.png", access="hide", tenant="ann")
    found = objects.stat(key)
    assert found is not None
    assert (found.size, found.content_type, found.file_name) == (len(whole), "image/png", "größe 🎈 ../x.png")
    assert (found.access, found.tenant) == ("hide", "ann")
    assert objects.read(key) == whole
    assert objects.read(key, 3, 5) == whole[3:8]
    assert objects.read(key, 10_000) == whole[10_000:]
    assert objects.copy_to(found, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == whole


def test_a_large_file_arrives_whole(objects: Objects) -> None:
    data = BytesIO(DATA * 2000)  # beyond what goes in one request
    key = objects.put(data, "video/mp4", "mp4")
    assert objects.read(key) == data.getvalue()


@pytest.mark.parametrize("key", ["", "../jobs.db", "a" * 32, "A" * 32 + ".png", "a" * 32 + ".png/..", "\x00", "%00"])
def test_no_other_string_finds_or_deletes_anything(objects: Objects, key: str) -> None:
    assert (objects.stat(key), objects.read(key), objects.delete(key)) == (None, None, False)


def test_a_deleted_file_is_gone(objects: Objects, tmp_path: Path) -> None:
    key = objects.put(DATA, "image/png", "png")
    found = objects.stat(key)
    assert found is not None
    assert objects.delete(key)
    assert not objects.delete(key)
    assert (objects.stat(key), objects.read(key)) == (None, None)
    assert not objects.copy_to(found, tmp_path / "copy")


def test_what_has_expired_is_not_seen_and_is_swept(objects: Objects, clock: Clock) -> None:
    brief = objects.put(DATA, "image/png", "png", ttl_s=60, tenant="ann")
    later, lasting = objects.put(DATA, "image/png", "png", ttl_s=20_000), objects.put(DATA, "image/png", "png")
    assert objects.sweep() == 0
    clock.advance(60)
    assert objects.stat(brief) is None
    clock.advance(3600)  # a bucket is swept by the hour
    assert objects.sweep() == 1
    assert (objects.read(brief), objects.read(later), objects.read(lasting)) == (None, DATA, DATA)
    assert objects.sweep() == 0


def test_a_promised_key_can_be_filled_again(objects: Objects) -> None:
    key = objects.new_key("txt")
    assert objects.stat(key) is None
    assert objects.put(b"one", "text/plain", "txt", key=key) == key
    objects.delete(key)
    objects.put(b"another", "text/html", "txt", key=key)
    found = objects.stat(key)
    assert found is not None
    assert (found.content_type, objects.read(key)) == ("text/html", b"another")


@pytest.mark.parametrize(("access", "readers"), [("allow", ["ann", "bob"]), ("forbid", ["ann"]), ("hide", ["ann"])])
def test_who_finds_a_file_by_its_address(objects: Objects, access: Access, readers: list[str]) -> None:
    key = objects.put(DATA, "image/png", "png", access=access, tenant="ann")
    for host in ("http://127.0.0.1:8000", "https://v3.fal.media", "https://x.test/cdn"):
        url = f"{host}/files/{key}"
        assert [tenant for tenant in ("ann", "bob") if objects.find(url, tenant)] == readers
    assert objects.find(f"https://x.test/elsewhere/{key}", "ann") is None


def test_the_oldest_go_beyond_a_size(objects: Objects) -> None:
    keys = [objects.put(DATA, "image/png", "png") for _ in range(3)]
    assert objects.oldest_beyond(3 * len(DATA), before=float("inf")) is None
    assert objects.oldest_beyond(0, before=0.0) is None
    moment = objects.oldest_beyond(0, before=float("inf"))
    assert moment is not None
    assert objects.delete_until(moment, spared={keys[1]}) == 2
    assert [objects.stat(key) is not None for key in keys] == [False, True, False]


def test_parts_are_joined_in_the_order_asked_for(objects: Objects, tmp_path: Path) -> None:
    parts = objects.parts(tmp_path)
    for name, data in {"1-a": b"one", "2-b": b"", "3-c": b"three"}.items():
        (tmp_path / "new").write_bytes(data)
        parts.keep("upload", name, tmp_path / "new")
    assert parts.sizes("upload") == {"1-a": 3, "2-b": 0, "3-c": 5}
    with parts.joined("upload", ["3-c", "2-b", "1-a"]) as joined:
        assert joined.read() == b"threeone"
    parts.drop_older(1.0)
    assert len(parts.sizes("upload")) == 3
    parts.drop("upload")
    assert (parts.sizes("upload"), parts.sizes("another")) == ({}, {})


def test_parts_that_are_never_joined_go(objects: Objects, tmp_path: Path) -> None:
    parts = objects.parts(tmp_path)
    (tmp_path / "new").write_bytes(b"one")
    parts.keep("upload", "1-a", tmp_path / "new")
    parts.drop_older(float("inf"))
    assert parts.sizes("upload") == {}


def test_a_probe_finds_nothing_wrong(objects: Objects) -> None:
    objects.probe()
    assert objects.problem is None
