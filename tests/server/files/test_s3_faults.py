"""What a bucket does wrong: one file that cannot be read is nobody else's trouble, and each fault has its sentence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.files import s3_client
from server.files.choice import open_objects
from server.files.objects import FileRefusedError, ObjectsAwayError
from server.files.outputs import EncodedPicture, Outputs
from server.files.uploads import Uploads, UploadTicket
from server.workers.threads import started
from tests.server.s3_front import Asked, Front, front_of
from tests.server.s3_service import BUCKET, S3Service

DATA = b"0123456789" * 10


@pytest.fixture(scope="module")
def _front(_s3_service: S3Service) -> Iterator[Front]:
    with front_of(_s3_service.endpoint) as front:
        yield front


@pytest.fixture
def front(_front: Front, s3: S3Service) -> Iterator[Front]:
    yield _front
    _front.faults.clear()


@pytest.fixture
def objects(front: Front, s3: S3Service, tmp_path: Path) -> Any:
    return open_objects(tmp_path, s3.new_url(), front.endpoint)


def test_a_file_that_breaks_off_is_read_again(front: Front, objects: Any) -> None:
    key = objects.put(DATA, "image/png", "png")
    left = [key]
    front.faults.append(
        lambda asked: asked.path.endswith(f"/{key}") and bool(left) and asked.forward(cut=bool(left.pop()))
    )
    assert objects.read(key) == DATA
    assert (left, objects.problem) == ([], None)


@pytest.mark.parametrize("how", ["breaks off", "forbidden", "archived"])
def test_a_file_that_cannot_be_read_keeps_no_other_from_it(front: Front, objects: Any, how: str) -> None:
    bad, good = (objects.put(DATA, "image/png", "png") for _ in range(2))

    def fault(asked: Asked) -> bool:
        if not asked.path.endswith(f"/{bad}"):
            return False
        if how == "breaks off":
            return asked.forward(cut=True)
        return asked.refuse(403, "AccessDenied" if how == "forbidden" else "InvalidObjectState")

    front.faults.append(fault)
    for _ in range(2):
        with pytest.raises(FileRefusedError) as refused:
            objects.read(bad)
        assert refused.value.strerror == "the object store refuses this file"
        assert bad in str(refused.value)
        assert (objects.read(good), objects.problem) == (DATA, None)
        objects.probe()


def test_what_is_refused_for_every_file_is_found_by_the_next_probe(front: Front, objects: Any) -> None:
    key = objects.put(DATA, "image/png", "png")
    objects.probe()
    front.faults.append(lambda asked: asked.command == "GET" and asked.refuse(403, "AccessDenied"))
    with pytest.raises(FileRefusedError):
        objects.read(key)
    objects.probe()
    assert objects.problem is not None
    assert "GetObject is not allowed; it needs s3:GetObject" in objects.problem


def test_a_service_that_fails_is_away_at_once(front: Front, objects: Any) -> None:
    front.faults.append(lambda asked: asked.refuse(503, "SlowDown"))
    with pytest.raises(ObjectsAwayError, match="PutObject was answered with SlowDown") as away:
        objects.put(DATA, "image/png", "png")
    assert not isinstance(away.value, FileRefusedError)
    assert objects.problem == str(away.value)


def test_a_bucket_that_is_full_for_pictures_is_not_taken_for_one_that_is_well(front: Front, objects: Any) -> None:
    """A few bytes may go in all the same: else a node would draw on, and hold what it cannot store."""
    front.faults.append(lambda asked: len(asked.body) > 50 and asked.refuse(403, "QuotaExceeded"))
    with pytest.raises(ObjectsAwayError, match="PutObject was answered with QuotaExceeded"):
        objects.put(DATA, "image/png", "png")
    objects.probe()
    assert objects.problem is not None
    front.faults.clear()
    objects.probe()
    assert objects.problem is None
    objects.put(DATA, "image/png", "png")


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (302, {"location": "http://127.0.0.1:1/"}, "", "answered with 302, as by no S3 service; correct --s3-endpoint"),
        (301, {"location": "http://127.0.0.1:1/"}, "", "lies in another region (301); set AWS_REGION, or correct --s3"),
        (200, {}, "<html>Console</html>", "gives back other bytes than it was given; correct --s3-endpoint if"),
        (404, {}, "<html>Not Found</html>", "answered with 404, as by no S3 service"),
        (400, {}, "Client sent an HTTP request to an HTTPS server.", "answered with 400, as by no S3 service"),
        (403, {}, "<Error><Code>AccessDenied</Code></Error>", "PutObject is not allowed; it needs s3:GetObject"),
        (400, {}, "<Error><Code>AuthorizationHeaderMalformed</Code></Error>", "lies in another region (Authorization"),
        (403, {}, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "clock is more than 15 minutes off; set it"),
    ],
)
def test_a_check_says_of_every_service_what_to_do(
    front: Front, objects: Any, status: int, headers: dict[str, str], body: str, said: str
) -> None:
    front.faults.append(lambda asked: asked.say(status, body, **headers))
    problem = objects._bucket.check().problem
    assert said in problem
    assert problem.startswith("s3://")


def test_a_bucket_that_deletes_nothing_is_told_and_used(front: Front, objects: Any) -> None:
    denied = "<DeleteResult><Error><Key>x</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    front.faults.append(lambda asked: asked.command == "POST" and asked.say(200, denied))
    look = objects._bucket.check()
    assert look.problem is None
    assert look.lasting.endswith("deletes nothing, and what has expired stays: it needs s3:DeleteObject")


def test_a_service_that_sends_half_an_answer_and_falls_silent_is_told(
    front: Front, objects: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_client, "SILENCE_S", 0.3)
    hasty: Any = open_objects(tmp_path, f"s3://{BUCKET}/hasty", front.endpoint.replace("127.0.0.1", "localhost"))
    key = hasty.put(DATA, "image/png", "png")
    goes_on = threading.Event()
    front.faults.append(lambda asked: asked.command == "GET" and asked.forward(held=goes_on))
    try:
        with pytest.raises(FileRefusedError, match="breaks off in the middle of"):
            hasty.read(key)
        hasty.probe()
        assert "the service does not answer (ReadTimeoutError)" in hasty.problem
    finally:
        goes_on.set()


def test_an_endpoint_without_tls_is_told(s3: S3Service, tmp_path: Path) -> None:
    objects: Any = open_objects(tmp_path, f"s3://{BUCKET}/x", s3.endpoint.replace("http://", "https://"))
    assert "its certificate is refused, or it speaks no TLS; set AWS_CA_BUNDLE" in objects._bucket.check().problem


@pytest.mark.parametrize(("data", "kind"), [(DATA[::-1], "image/png"), (DATA * 2, "image/png"), (DATA, "image/webp")])
def test_a_file_that_is_sent_again_is_there_until_the_new_one_is(
    front: Front, objects: Any, data: bytes, kind: str
) -> None:
    key = objects.put(DATA, "image/png", "png", ttl_s=3600, tenant="ann")

    def refuse_bytes(asked: Asked) -> bool:
        is_of_it = f"/{key}" in asked.path and not asked.path.endswith(".json")
        return asked.command == "PUT" and is_of_it and asked.refuse(403, "X")

    front.faults.append(refuse_bytes)
    with pytest.raises(ObjectsAwayError):
        objects.put(data, kind, "png", ttl_s=3600, tenant="ann", key=key)
    front.faults.clear()
    objects.probe()
    assert (objects.read(key), objects.stat(key).content_type) == (DATA, "image/png")
    objects.put(data, kind, "png", ttl_s=9000, tenant="ann", key=key)
    assert (objects.read(key), objects.stat(key).content_type) == (data, kind)
    assert len(list(objects._entries())) == 1, "the index tells of the new one alone"
    assert list(objects._bucket.names("parts/")) == []


def test_a_description_that_the_bucket_keeps_is_never_beside_other_bytes(
    objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = objects.put(DATA, "image/png", "png", access="allow")
    monkeypatch.setattr(objects._bucket, "_deleted", set)
    with pytest.raises(FileRefusedError, match="cannot be replaced"):
        objects.put(DATA * 2, "image/png", "png", key=key, access="hide")
    assert (objects.read(key), objects.stat(key).access) == (DATA, "allow")
    assert len(list(objects._entries())) == 1


def test_what_the_bucket_does_not_delete_holds_up_nothing_else(objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, *others = (objects.put(DATA, "image/png", "png") for _ in range(3))
    bucket, real = objects._bucket, objects._bucket._deleted

    def locked(names: list[str]) -> set[str]:
        return real([name for name in names if name != f"{kept}.json"]) | ({f"{kept}.json"} & set(names))

    monkeypatch.setattr(bucket, "_deleted", locked)
    with pytest.raises(FileRefusedError, match="1 files are not deleted by the bucket; 2 are gone"):
        objects.delete_until(float("inf"), spared=())
    assert [objects.stat(key) is not None for key in (kept, *others)] == [True, False, False]
    assert objects.read(kept) == DATA


def test_files_come_and_go_on_threads_of_their_own(
    s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow bucket takes none of those on which submits and cancels wait."""
    own = started(2, "objects")
    objects: Any = open_objects(tmp_path, s3.new_url(), s3.endpoint, threads=own)
    names: set[str] = set()
    bucket = objects._bucket
    for method in ("put", "get", "names"):
        real = getattr(bucket, method)

        def noted(*args: Any, real: Any = real) -> Any:
            names.add(threading.current_thread().name.partition("_")[0])
            return real(*args)

        monkeypatch.setattr(bucket, method, noted)
    uploads = Uploads(objects, tmp_path / "uploads", 3600.0)
    ticket = UploadTicket.make("image/png", "a.png", None)
    outputs = Outputs(objects, 3600.0)

    async def body() -> Any:
        yield DATA

    async def main() -> None:
        await uploads.receive(ticket, body())
        part = await uploads.receive_part(ticket, 1, body())
        await uploads.complete(ticket, [{"partNumber": 1, "etag": part}])
        await outputs.deliver(EncodedPicture(DATA, "png", 0, 1, 1, False), False)

    try:
        asyncio.run(main())
    finally:
        outputs.close()
        objects.close()
    assert names == {"objects"}
