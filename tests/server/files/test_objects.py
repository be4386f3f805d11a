"""Files: whole or absent, found only by their unguessable keys, gone when they expire."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.files import folder_objects as objects_module
from server.files.folder_objects import ABANDONED_S, UNDESCRIBED_S, FolderObjects
from server.files.objects import Access, StoredObject
from tests.server.stores import Clock

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def objects(tmp_path: Path, clock: Clock) -> FolderObjects:
    return FolderObjects(tmp_path / "files", clock)


def files(objects: FolderObjects) -> list[Path]:
    return [path for path in objects._folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"pixels", BytesIO(b"pixels")], ids=["bytes", "stream"])
def test_what_was_put_is_served_with_its_description(objects: FolderObjects, data: bytes | BytesIO) -> None:
    key = objects.put(data, "image/png", "png", file_name="größe ../x.png")
    path, found = objects.path(key), objects.stat(key)
    assert path is not None
    assert found is not None
    assert path.read_bytes() == b"pixels"
    assert (found.key, found.size, found.content_type, found.file_name) == (key, 6, "image/png", "größe ../x.png")


def test_keys_are_random_and_end_in_the_suffix(objects: FolderObjects) -> None:
    keys = {objects.put(b"", "image/png", "png") for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) == 36 and key.endswith(".png") for key in keys)


@pytest.mark.parametrize("suffix", ["", "../x", "PNG", "a/b", "toolongsuffix"])
def test_a_suffix_cannot_become_a_path(objects: FolderObjects, suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix"):
        objects.put(b"x", "image/png", suffix)
    assert files(objects) == []


@given(key=st.text() | st.sampled_from(["../jobs.db", "/etc/passwd", "a" * 32 + ".png\n", "..", "", "\0"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_string_finds_or_deletes_anything(objects: FolderObjects, key: str) -> None:
    assert (objects.path(key), objects.stat(key), objects.delete(key)) == (None, None, False)


def test_the_description_of_a_file_is_not_served(objects: FolderObjects) -> None:
    key = objects.put(b"x", "image/png", "png")
    assert objects.path(key + ".json") is None


def test_a_deleted_file_leaves_nothing(objects: FolderObjects) -> None:
    key = objects.put(b"x", "image/png", "png")
    assert objects.delete(key)
    assert not objects.delete(key)
    assert (objects.path(key), files(objects)) == (None, [])


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"access": "allow"', b"[]"])
def test_a_file_whose_description_is_lost_is_shown_to_nobody_and_swept_in_the_end(
    objects: FolderObjects, clock: Clock, damage: bytes | None
) -> None:
    """It may have been hidden, or meant to live for a minute."""
    key = objects.put(b"x", "image/webp", "webp", ttl_s=60, access="hide")
    path = objects._path(key)
    description = path.with_name(key + ".json")
    description.unlink() if damage is None else description.write_bytes(damage)
    os.utime(path, (clock.now, clock.now))
    assert (objects.stat(key), objects.path(key)) == (None, None)
    objects.sweep()
    assert path.exists(), "an operator may look at it for a while"
    clock.advance(UNDESCRIBED_S)
    objects.sweep()
    assert files(objects) == []


def test_an_access_that_nobody_knows_is_a_damaged_description(objects: FolderObjects) -> None:
    key = objects.put(b"x", "image/webp", "webp")
    description = objects._path(key + ".json")
    description.write_text(description.read_text().replace('"allow"', '"everyone"'))
    assert objects.stat(key) is None


@pytest.mark.parametrize(
    ("access", "owner", "reader", "may"),
    [
        ("allow", "a", "b", True),
        ("hide", "a", "b", False),
        ("forbid", "a", "b", False),
        ("hide", "a", "a", True),
        ("hide", "", "b", True),
    ],
)
def test_what_is_hidden_is_for_its_tenant_alone(access: Access, owner: str, reader: str, may: bool) -> None:
    assert StoredObject("k.png", 1, "image/png", access=access, tenant=owner).is_for(reader) is may


def test_only_their_owner_may_read_the_files(objects: FolderObjects) -> None:
    objects.put(b"x", "image/png", "png")
    assert {path.stat().st_mode & 0o777 for path in files(objects)} == {0o600}
    assert objects._folder.stat().st_mode & 0o777 == 0o700


def test_data_and_description_are_durable_before_the_file_appears_and_its_name_after(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut may interrupt anywhere."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".png")[2])
        fsync(descriptor)

    def appear(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(objects_module.os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", appear)
    objects.put(b"x", "image/png", "png")
    assert events == ["sync .part", "sync .json.part", "rename", "rename", "sync "]


def test_an_expired_file_is_not_served_and_is_swept(objects: FolderObjects, clock: Clock) -> None:
    brief, lasting = objects.put(b"x", "image/png", "png", ttl_s=60), objects.put(b"y", "image/png", "png")
    clock.advance(59)
    assert objects.sweep() == 0
    assert objects.path(brief) is not None
    clock.advance(1)
    assert objects.path(brief) is None
    assert objects.sweep() == 1
    assert {path.name for path in files(objects)} == {lasting, lasting + ".json"}


def test_a_full_disk_is_an_os_error_and_leaves_nothing(objects: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is injected at fsync, where a delayed allocation really reports it."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(objects_module.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        objects.put(b"x" * 100, "image/png", "png")
    assert files(objects) == []


def test_a_refused_write_is_told_to_whoever_watches_the_disk(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(objects_module, "_write_whole", refuse)
    with pytest.raises(OSError, match="No space"):
        objects.put(b"x", "image/png", "png")
    assert objects.disk.problem is not None


def test_a_promised_key_can_be_filled_again(objects: FolderObjects) -> None:
    """As when an upload was cut off after its description was written."""
    key = objects.put(b"first", "text/plain", "png")
    assert objects.put(b"second", "image/png", "png", key=key) == key
    path, found = objects.path(key), objects.stat(key)
    assert path is not None
    assert found is not None
    assert (path.read_bytes(), found.content_type) == (b"second", "image/png")


def test_a_file_that_is_sent_again_is_there_until_the_new_one_is(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = objects.put(b"first", "text/plain", "png", tenant="ann")
    with monkeypatch.context() as patch:

        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(objects_module.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            objects.put(b"second", "image/png", "png", key=key, tenant="ann")
    found = objects.stat(key)
    assert found is not None
    assert (found.content_type, objects.read(key), objects.stored_bytes("ann")) == ("text/plain", b"first", 5)
    objects.put(b"another", "image/png", "png", key=key, tenant="ann")
    assert (objects.read(key), objects.stored_bytes("ann"), len(files(objects))) == (b"another", 7, 2)


def test_storing_files_leaves_no_descriptor_open(objects: FolderObjects) -> None:
    before = psutil.Process().num_fds()
    for _ in range(5):
        objects.put(b"x", "image/png", "png")
    assert psutil.Process().num_fds() <= before


def test_kill_9_leaves_whole_files_and_sweepable_rests(tmp_path: Path, clock: Clock) -> None:
    program = (
        "import os, sys; from pathlib import Path; from server.files.folder_objects import FolderObjects\n"
        "objects = FolderObjects(Path(sys.argv[1]))\n"
        "while True: os.write(1, (objects.put(b'x' * 300_000, 'image/png', 'png') + '\\n').encode())"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    keys = [writer.stdout.readline().strip() for _ in range(10)]
    writer.send_signal(signal.SIGKILL)
    keys += [line.strip() for line in writer.stdout.readlines() if line.endswith("\n")]
    writer.communicate()

    objects = FolderObjects(tmp_path, clock)
    for key in keys:
        path = objects.path(key)
        assert path is not None
        assert path.stat().st_size == 300_000
    for path in files(objects):
        os.utime(path, (clock.now - ABANDONED_S, clock.now - ABANDONED_S))
    objects.sweep()
    kept = {path.name for path in files(objects)}
    assert {name for name in kept if name.endswith(".part")} == set()
    assert {name.removesuffix(".json") for name in kept} == {name for name in kept if name.endswith(".png")}


def test_a_write_in_progress_is_not_swept(objects: FolderObjects, clock: Clock) -> None:
    key = "0" * 32 + ".png"
    part = objects._path(key + ".part")
    part.write_bytes(b"half")
    os.utime(part, (clock.now, clock.now))
    assert objects.sweep() == 0
    clock.advance(ABANDONED_S)
    assert objects.sweep() == 1
