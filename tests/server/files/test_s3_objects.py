"""What is particular about a bucket: how little is listed, what is said when it is away, addresses of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from server.files.choice import ObjectsError, open_objects
from server.files.objects import ObjectsAwayError
from server.files.uploads import UploadError
from tests.server.s3_service import BUCKET, KEY_ID, S3Service
from tests.server.stores import Clock
from tests.server.workers.test_process import until

ROOT = Path(__file__).parents[3]
HOUR_S = 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(s3: S3Service) -> str:
    return s3.new_url()


@pytest.fixture
def objects(s3: S3Service, url: str, tmp_path: Path, clock: Clock) -> Any:
    return open_objects(tmp_path, url, s3.endpoint, clock=clock)


def test_without_the_flag_the_library_is_not_imported(tmp_path: Path) -> None:
    program = (
        "import sys, server.node, server.app\n"
        "from pathlib import Path\n"
        "from server.files.choice import open_objects\n"
        "open_objects(Path(sys.argv[1]), None)\n"
        "print(sorted(name for name in ('boto3', 'botocore', 's3transfer') if name in sys.modules))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(ObjectsError, match="pip install 'boto3>="),
    ):
        open_objects(tmp_path, "s3://bucket")


def test_another_node_sees_the_same_files(s3: S3Service, objects: Any, url: str, tmp_path: Path) -> None:
    other = open_objects(tmp_path, url, s3.endpoint)
    key = objects.put(b"x", "image/png", "png", tenant="ann")
    assert other.read(key) == b"x"
    assert other.delete(key)
    assert objects.stat(key) is None


def test_a_deleted_file_leaves_nothing(s3: S3Service, objects: Any, url: str) -> None:
    key = objects.put(b"x", "image/png", "png", ttl_s=60)
    assert len(s3.files(url)) == 3
    objects.delete(key)
    assert s3.files(url) == []


def test_a_write_that_was_killed_shows_nothing_and_is_swept_in_its_time(
    s3: S3Service, objects: Any, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = objects.new_key("png")
    real = objects._bucket.put

    def killed(name: str, *rest: object) -> None:
        if name.endswith(".json"):
            raise KeyboardInterrupt
        real(name, *rest)

    monkeypatch.setattr(objects._bucket, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        objects.put(b"x", "image/png", "png", ttl_s=60, key=key)
    assert objects.stat(key) is None
    assert len(s3.files(url)) == 2
    clock.advance(60 + HOUR_S)
    assert objects.sweep() == 1
    assert s3.files(url) == []


def test_a_sweep_lists_no_file_that_has_not_expired(
    objects: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        objects.put(b"x", "image/png", "png", ttl_s=60 if number < 2 else 100 * HOUR_S, tenant=f"tenant {number % 2}")
    clock.advance(2 * HOUR_S)
    listed: list[Any] = []
    real = objects._bucket.names

    def noted(folder: str) -> list[Any]:
        listed.extend(found := list(real(folder)))
        return found

    monkeypatch.setattr(objects._bucket, "names", noted)
    assert objects.sweep() == 2
    assert len(listed) == 2


def test_bytes_are_counted_and_what_this_node_stores_counts_at_once(
    s3: S3Service, objects: Any, url: str, tmp_path: Path
) -> None:
    objects.put(bytes(100), "image/png", "png", tenant="ann")
    objects.put(bytes(10), "image/png", "png", tenant="bob")
    fresh = open_objects(tmp_path, url, s3.endpoint)
    _settle(lambda: (fresh.stored_bytes("ann"), fresh.stored_bytes("bob"), fresh.total_bytes) == (100, 10, 110))
    key = fresh.put(bytes(5), "image/png", "png", tenant="ann")
    assert (fresh.stored_bytes("ann"), fresh.stored_bytes("bob"), fresh.total_bytes) == (105, 10, 115)
    fresh.delete(key)
    assert (fresh.stored_bytes("ann"), fresh.total_bytes) == (100, 110)


def test_an_address_of_the_service_gives_ranges_and_says_what_we_say(s3: S3Service, url: str, tmp_path: Path) -> None:
    objects = open_objects(tmp_path, url, s3.endpoint, redirects=True)
    key = objects.put(b"0123456789", "text/html", "html")
    found = objects.stat(key)
    assert found is not None
    address = objects.direct_url(found, "attachment", 60.0)
    assert address is not None
    with urllib.request.urlopen(urllib.request.Request(address, headers={"range": "bytes=2-4"})) as answer:
        assert answer.read() == b"234"
        assert answer.headers["content-type"] == "text/html"
        assert answer.headers["content-disposition"] == "attachment"


def test_a_service_that_is_away_is_told_and_comes_back_by_itself(s3: S3Service, objects: Any) -> None:
    key = objects.put(b"x", "image/png", "png")
    with s3.away():
        for refused in (
            lambda: objects.stat(key),
            lambda: objects.read(key),
            lambda: objects.put(b"y", "image/png", "png"),
            lambda: objects.put(BytesIO(b"y"), "image/png", "png"),
            lambda: objects.delete(key),
            objects.sweep,
        ):
            with pytest.raises(ObjectsAwayError, match="the service does not answer"):
                refused()
        objects.probe()
        assert objects.problem is not None
        assert objects.problem.startswith("s3://")
        assert "secret" not in objects.problem
    objects.probe()
    assert objects.problem is None
    assert objects.read(key) == b"x"


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("s3://nowhere/x", None, "there is no such bucket; make it, or correct --objects"),
        (f"s3://{BUCKET}/x", "wrong-secret-value", "refuses the credentials (SignatureDoesNotMatch); look at AWS_"),
    ],
)
def test_a_check_says_what_is_wrong_and_what_to_do(
    s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, secret: str | None, said: str
) -> None:
    if secret is not None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        s3.new_client.cache_clear()
    objects: Any = open_objects(tmp_path, url, s3.endpoint)
    s3.new_client.cache_clear()
    problem = objects._bucket.check().problem
    assert problem is not None
    assert said in problem
    assert KEY_ID not in problem
    assert "wrong-secret" not in problem
    objects.probe()
    with pytest.raises(ObjectsAwayError):
        objects.read(objects.new_key("png"))


def test_a_check_leaves_nothing(s3: S3Service, objects: Any, url: str) -> None:
    assert objects._bucket.check().problem is None
    assert s3.files(url) == []


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (None, "https://pictures.s3.amazonaws.com/"),
        ("https://s3.example.com", "https://s3.example.com/pictures/"),
        ("https://pictures.s3.example.com", "https://pictures.s3.example.com/"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/pictures/"),
    ],
)
def test_by_path_or_by_name_as_the_endpoint_says(
    s3: S3Service, tmp_path: Path, endpoint: str | None, address: str
) -> None:
    objects: Any = open_objects(tmp_path, "s3://pictures", endpoint)
    assert objects._bucket.address("k.png", 60, "image/png", "inline").startswith(address + "k.png?")


def _settle(is_so: Callable[[], bool]) -> None:
    asyncio.run(until(is_so))


def test_a_part_that_goes_while_it_is_joined_is_not_taken_for_an_empty_one(objects: Any, tmp_path: Path) -> None:
    parts = objects.parts(tmp_path)
    for name in ("1-a", "2-b"):
        (tmp_path / name).write_bytes(b"x" * 10)
        parts.keep("key", name, tmp_path / name)
    sizes = parts.sizes("key")
    parts.drop("key")
    with mock.patch.object(parts, "sizes", return_value=sizes), pytest.raises(UploadError, match="are gone"):
        parts.joined("key", ["1-a", "2-b"])
    with pytest.raises(UploadError, match="are gone"):
        parts.joined("key", ["1-a"])


def test_credentials_that_cannot_be_read_are_the_buckets_fault(objects: Any) -> None:
    """A file or a command may give them: what is raised then is none of the library's own errors."""
    denied = PermissionError(13, "Permission denied")
    bucket = objects._bucket
    with mock.patch.object(bucket, "_client", mock.Mock(put_object=mock.Mock(side_effect=denied))):
        with pytest.raises(ObjectsAwayError):
            objects.put(b"x", "image/png", "png")
        assert "PermissionError" in bucket.check().problem
