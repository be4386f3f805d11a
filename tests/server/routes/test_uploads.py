"""Sending files, as each client does it; the official Python client does it itself at the end."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fal_client
import fal_client.client
import pytest

from server.files.uploads import MAX_PART_BYTES, MAX_UPLOAD_BYTES
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

INITIATE = "/rest/storage/upload/initiate?storage_type=fal-cdn-v3"
MULTIPART = "/rest/storage/upload/initiate-multipart?storage_type=fal-cdn-v3"
PNG = {"content_type": "image/png", "file_name": "a.png"}


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as served:
        yield served


def initiate(api: Api, path: str = INITIATE, **headers: str) -> dict[str, str]:
    answer = api.http.post(path, json=PNG, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("storage", ["fal-cdn-v3", "gcs", "fal-cdn", ""])
def test_a_whole_file_by_its_address(anywhere: Api, storage: str) -> None:
    urls = initiate(anywhere, f"/rest/storage/upload/initiate?storage_type={storage}")
    assert anywhere.http.get(urls["file_url"]).status_code == 404
    assert (
        anywhere.http.put(urls["upload_url"], content=b"pixels", headers={"content-type": "image/png"}).status_code
        == 200
    )
    answer = anywhere.http.get(urls["file_url"])
    assert (answer.content, answer.headers["content-type"]) == (b"pixels", "image/png")
    assert anywhere.http.put(urls["upload_url"], content=b"again").status_code == 200
    assert anywhere.http.get(urls["file_url"]).content == b"again"


def test_an_upload_address_is_its_own_permission(locked: Api) -> None:
    assert locked.http.post(INITIATE, json=PNG).status_code == 401
    urls = initiate(locked, authorization="Key id:secret")
    assert locked.http.put(urls["upload_url"], content=b"x").status_code == 200
    assert locked.http.put(urls["upload_url"], content=b"x", headers={"authorization": "Key w:rong"}).status_code == 200
    assert locked.http.put(urls["upload_url"][:-5] + "AAAAA", content=b"x").status_code == 403
    assert locked.http.put(f"{locked.url}/files/upload/nonsense", content=b"x").status_code == 403


def test_parts_as_javascript_sends_them(anywhere: Api) -> None:
    urls = initiate(anywhere, MULTIPART)
    parts = []
    for number, content in enumerate((b"a" * 70_000, b"b" * 70_000, b"c"), start=1):
        answer = anywhere.http.put(f"{urls['upload_url']}/{number}", content=content)
        assert answer.json()["partNumber"] == number
        assert answer.headers["etag"].strip('"') == answer.json()["etag"]
        parts.append(answer.json())
    done = anywhere.http.post(f"{urls['upload_url']}/complete", json={"parts": parts})
    assert done.status_code == 200
    assert anywhere.http.get(urls["file_url"]).content == b"a" * 70_000 + b"b" * 70_000 + b"c"
    assert list((anywhere.node.settings.data_dir / "uploads").iterdir()) == []


def test_an_end_that_is_told_twice_is_the_same_end(anywhere: Api) -> None:
    """As by a client that did not hear the first answer: the file stays whole."""
    urls = initiate(anywhere, MULTIPART)
    part = anywhere.http.put(f"{urls['upload_url']}/1", content=b"a" * 70_000).json()
    for _ in range(2):
        assert anywhere.http.post(f"{urls['upload_url']}/complete", json={"parts": [part]}).status_code == 200
        assert anywhere.http.get(urls["file_url"]).content == b"a" * 70_000


def test_parts_in_any_order_with_an_etag_from_the_header(locked: Api) -> None:
    key = {"authorization": "Key id:secret"}
    token = locked.http.post("/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}, headers=key).json()
    bearer = {"authorization": f"{token['token_type']} {token['token']}", "content-type": "image/png"}
    assert locked.http.post(f"{token['base_url']}/files/upload/multipart").status_code == 401
    begun = locked.http.post(f"{token['base_url']}/files/upload/multipart", headers=bearer).json()
    base = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    parts = []
    for number in (3, 1, 2):
        answer = locked.http.put(f"{base}/{number}", content=str(number).encode(), headers=bearer)
        parts.append({"partNumber": number, "etag": answer.headers["etag"]})
    assert locked.http.post(f"{base}/complete", json={"parts": parts}, headers=bearer).status_code == 200
    assert locked.http.get(begun["access_url"]).content == b"123"


def test_the_toolkit_asks_for_an_address_for_each_part(api: Api) -> None:
    urls = initiate(api, "/rest/storage/upload/initiate-multipart?storage_type=gcs")
    part = api.http.post(f"{urls['upload_url']}/1", json={}).json()["upload_url"]
    assert api.http.put(part, content=b"x").status_code == 200


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        "x",
        [{"partNumber": 1, "etag": "0" * 64}],
        [{"partNumber": "../1", "etag": "x"}],
        [{"partNumber": 2, "etag": None}],
        [1],
    ],
)
def test_an_end_that_names_other_parts_is_400(anywhere: Api, parts: Any) -> None:
    urls = initiate(anywhere, MULTIPART)
    anywhere.http.put(f"{urls['upload_url']}/1", content=b"x")
    answer = anywhere.http.post(f"{urls['upload_url']}/complete", json={"parts": parts})
    assert answer.status_code == 400
    assert anywhere.http.get(urls["file_url"]).status_code == 404


@pytest.mark.parametrize(("tail", "status"), [("0", 400), ("1001", 400), ("x", 404), ("-1", 404), ("1/2", 403)])
def test_odd_part_numbers_are_refused(api: Api, tail: str, status: int) -> None:
    url = initiate(api, MULTIPART)["upload_url"]
    answer = api.http.put(f"{url}/{tail}", content=b"x")
    assert answer.status_code == status
    assert url[-8:] not in answer.text


@pytest.mark.parametrize("part", [{"part_number": 1, "etag": "x"}, {"partNumber": 1}, 1])
def test_an_end_with_misspelt_parts_says_what_is_expected(api: Api, part: Any) -> None:
    urls = initiate(api, MULTIPART)
    answer = api.http.post(f"{urls['upload_url']}/complete", json={"parts": [part]})
    assert answer.status_code == 400
    assert answer.json() == {"detail": 'Each entry of parts must be {"partNumber": number, "etag": text}'}


@pytest.mark.parametrize(
    ("method", "tail", "limit"),
    [("PUT", "", MAX_UPLOAD_BYTES), ("PUT", "/1", MAX_PART_BYTES), ("POST", None, MAX_UPLOAD_BYTES)],
)
def test_an_announced_size_beyond_the_limit_is_refused_unread(
    api: Api, method: str, tail: str | None, limit: int
) -> None:
    """Only the head is sent: an answer can come from it alone."""
    url = urlsplit("/files/upload" if tail is None else initiate(api, MULTIPART)["upload_url"] + tail)
    head = f"{method} {url.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n"
    server = urlsplit(api.url)
    with socket.create_connection((server.hostname or "", server.port or 0), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.fixture
def refusing_disk() -> Iterator[None]:
    """This process may write no file beyond 1 MiB: past it the kernel refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("refusing_disk")
@pytest.mark.parametrize("tail", ["", "/1"])
def test_a_disk_that_refuses_is_a_503_that_leaves_nothing(
    api: Api, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    urls = initiate(api, MULTIPART)
    answer = api.http.put(urls["upload_url"] + tail, content=bytes(3 << 20))
    assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_scheduling_failure")
    assert answer.json()["detail"].startswith("The server cannot store the file now: ")
    assert answer.headers["x-fal-retryable"] == "true"
    folders = [api.node.settings.data_dir / name for name in ("uploads", "files")]
    assert [path for folder in folders for path in folder.rglob("*") if path.is_file()] == []
    assert api.http.get(urls["file_url"]).status_code == 404
    assert [record.exc_info for record in caplog.records if record.levelname == "ERROR"] == [None]
    assert urls["upload_url"][-8:] not in caplog.text


@pytest.mark.usefixtures("refusing_disk")
def test_parts_that_do_not_fit_together_stay_for_another_try(api: Api) -> None:
    urls = initiate(api, MULTIPART)
    parts = [api.http.put(f"{urls['upload_url']}/{n}", content=bytes(700_000)).json() for n in (1, 2)]
    assert api.http.post(f"{urls['upload_url']}/complete", json={"parts": parts}).status_code == 503
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert api.http.post(f"{urls['upload_url']}/complete", json={"parts": parts}).status_code == 200
    assert len(api.http.get(urls["file_url"]).content) == 1_400_000


def test_the_python_way_in_one_piece(locked: Api) -> None:
    key = {"authorization": "Key id:secret"}
    token = locked.http.post("/rest/storage/auth/token/", json={}, headers=key).json()
    assert datetime.fromisoformat(token["expires_at"]).tzinfo is not None
    assert token["expires_at"].endswith("+00:00")
    headers = {"authorization": f"Bearer {token['token']}", "content-type": "text/html", "x-fal-file-name": "../a.html"}
    answer = locked.http.post("/files/upload", content=b"<script>", headers=headers)
    assert answer.json()["uploaded"] is True
    page = locked.http.get(answer.json()["access_url"])
    assert "sandbox" in page.headers["content-security-policy"]
    assert page.headers["content-disposition"] == 'attachment; filename="a.html"'
    assert locked.http.post("/files/upload", content=b"x").status_code == 401
    assert locked.http.post("/files/upload", content=b"x", headers=key).status_code == 200


def test_a_short_life_ends(anywhere: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 60}'}
    url = anywhere.http.post("/files/upload", content=b"x", headers=headers).json()["access_url"]
    key = url.rpartition("/")[2]
    stored = anywhere.node.objects.stat(key)
    assert stored is not None
    assert stored.expires_at is not None
    assert anywhere.http.get(url).status_code == 200
    monkeypatch.setattr(anywhere.node.objects, "_clock", lambda: stored.expires_at)
    assert anywhere.http.get(url).status_code == 404


def test_odd_content_types_and_names_do_no_harm(api: Api) -> None:
    for content_type, name in (
        ("text/html\u00e9", "x"),
        ("nonsense", None),
        ("", ""),
        ("a/b; charset=utf-8", "a" * 999),
    ):
        answer = api.http.post(INITIATE, json={"content_type": content_type, "file_name": name})
        assert answer.status_code == 200
        assert api.http.put(answer.json()["upload_url"], content=b"x").status_code == 200
        assert api.http.get(answer.json()["file_url"]).content == b"x"
    assert api.http.post(INITIATE, json={"content_type": 5}).json()["detail"][0]["loc"] == ["body", "content_type"]


def test_tokens(api: Api) -> None:
    bare = api.http.post("/rest/tokens/", json={"allowed_apps": ["flux"], "token_expiration": 120})
    assert isinstance(bare.json(), str)
    assert bare.headers["content-type"] == "application/json"
    newer = api.http.post("/rest/tokens/realtime", json={"allowed_apps": ["fal-ai/flux/realtime"], "duration": 60})
    assert set(newer.json()) == {"token"}
    for wrong in ({}, {"allowed_apps": []}, {"allowed_apps": ["a"], "token_expiration": -1}):
        assert api.http.post("/rest/tokens", json=wrong).status_code == 422
    assert api.http.get("/rest/tokens").status_code == 405
    assert api.http.post("/rest/unknown").status_code == 404


# The official client


@pytest.fixture
def client(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    monkeypatch.setattr(fal_client.client, "REST_URL", f"{api.url}/rest")
    monkeypatch.setattr(fal_client.client, "CDN_URL", f"{api.url}/cdn")
    yield fal_client.SyncClient(key="id:secret")
    gc.collect()  # its unclosed sockets, now


never_closes_its_sockets = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@never_closes_its_sockets
@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_fal_client_uploads(api: Api, client: fal_client.SyncClient, repository: Any) -> None:
    url = client.upload(b"pixels", "image/png", file_name="a.png", repository=repository)
    assert api.http.get(url).content == b"pixels"


@never_closes_its_sockets
def test_fal_client_uploads_in_parts(
    api: Api, client: fal_client.SyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3_000_001)
    path = tmp_path / "big.bin"
    path.write_bytes(content)
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 1_000_000)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", 1_000_000)
    assert api.http.get(client.upload_file(path)).content == content
    assert api.http.get(asyncio.run(fal_client.AsyncClient(key="id:secret").upload_file(path))).content == content
