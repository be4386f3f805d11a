"""Files in a bucket over HTTP: clients are sent there if the operator says so, and are told when it is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve
from tests.server.s3_service import S3Service

CONTENT = bytes(range(256)) * 4
INITIATE = "/rest/storage/upload/initiate"


@pytest.fixture
def redirecting(tmp_path: Path, s3: S3Service) -> Iterator[Api]:
    node = ApiNode(tmp_path, objects=s3.new_url(), s3_endpoint=s3.endpoint, s3_redirect=True, api_keys=("ann:secret",))
    with serve(node) as served:
        yield served


def test_a_reader_is_sent_to_the_bucket_for_a_while(redirecting: Api, s3: S3Service) -> None:
    key = redirecting.node.objects.put(CONTENT, "text/html", "html", "a page.html", ttl_s=120)
    answer = redirecting.http.get(f"/files/{key}")
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
    assert answer.headers["x-content-type-options"] == "nosniff"
    address = httpx.URL(answer.headers["location"])
    assert str(address).startswith(f"{s3.endpoint}/")
    assert 0 < int(address.params["X-Amz-Expires"]) <= 120
    direct = httpx.get(address, headers={"range": "bytes=1-3"})
    assert direct.content == CONTENT[1:4]
    assert direct.headers["content-disposition"] == "attachment; filename*=utf-8''a%20page.html"


def test_our_pages_may_show_what_a_browser_is_sent_there_for(redirecting: Api, s3: S3Service) -> None:
    """A page's policy is asked about the address that a redirect leads to."""
    page = redirecting.http.get("/playground", headers={"accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert f"img-src 'self' {s3.endpoint} data:" in policy
    assert f"connect-src 'self' {s3.endpoint};" in policy


def test_who_asks_for_a_head_or_has_the_file_is_answered_here(redirecting: Api) -> None:
    key = redirecting.node.objects.put(CONTENT, "image/png", "png")
    head = redirecting.http.head(f"/files/{key}")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    again = redirecting.http.get(f"/files/{key}", headers={"if-none-match": head.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(("access", "status"), [("forbid", 403), ("hide", 404)])
def test_only_its_owner_is_sent_to_what_is_not_for_all(redirecting: Api, access: str, status: int) -> None:
    headers = {
        "authorization": "Key ann:secret",
        "x-fal-object-lifecycle": f'{{"initial_acl": {{"default": "{access}"}}}}',
    }
    url = redirecting.http.post("/files/upload", content=b"x", headers=headers).json()["access_url"]
    stranger = redirecting.http.get(url)
    assert stranger.status_code == status
    assert "location" not in stranger.headers
    assert redirecting.http.get(url, headers=headers).status_code == 307


def test_a_bucket_that_is_away_is_a_503_that_says_when_to_come_again(redirecting: Api, s3: S3Service) -> None:
    http = redirecting.http
    key = redirecting.node.objects.put(CONTENT, "image/png", "png")
    headers = {"authorization": "Key ann:secret"}
    urls = http.post(f"{INITIATE}-multipart", json={"content_type": "image/png"}, headers=headers).json()
    with s3.away():
        for answer in (
            http.get(f"/files/{key}"),
            http.put(urls["upload_url"], content=b"x"),
            http.put(f"{urls['upload_url']}/1", content=b"x"),
            http.post("/files/upload", content=b"x", headers=headers),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert answer.headers["x-fal-retryable"] == "true"
            assert "the object store is away" in answer.json()["detail"]
            assert s3.endpoint not in answer.text
    redirecting.node.objects.probe()
    assert http.put(urls["upload_url"], content=b"x").status_code == 200
    assert http.get(f"/files/{key}").status_code == 307


def test_a_deletion_while_the_bucket_is_away_says_so_and_not_where_it_is(redirecting: Api, s3: S3Service) -> None:
    node, headers = redirecting.node, {"authorization": "Key ann:secret"}
    job_id = redirecting.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers).json()[
        "request_id"
    ]
    node.finish(node.claim())
    with s3.away():
        answer = redirecting.http.delete(f"/v1/models/requests/{job_id}/payloads", headers=headers)
    assert "the object store is away" in answer.text
    assert s3.endpoint.removeprefix("http://") not in answer.text
    assert "s3://" not in answer.text


def test_a_file_that_cannot_be_read_is_an_error_from_the_first_byte(tmp_path: Path, s3: S3Service) -> None:
    from botocore.exceptions import ClientError

    with serve(ApiNode(tmp_path, objects=s3.new_url(), s3_endpoint=s3.endpoint)) as api:
        objects: Any = api.node.objects
        gone, refused, good = (objects.put(CONTENT, "image/png", "png") for _ in range(3))
        objects._bucket.delete([gone])
        real = objects._bucket._client.get_object

        def refusing(**asked: Any) -> Any:
            if asked["Key"].endswith(refused):
                raise ClientError(
                    {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"
                )
            return real(**asked)

        with mock.patch.object(objects._bucket._client, "get_object", refusing):
            for headers in ({}, {"range": "bytes=1-3"}):
                answers = [api.http.get(f"/files/{key}", headers=headers) for key in (gone, refused, good)]
                assert [answer.status_code // 100 for answer in answers] == [4, 5, 2]
                assert "the object store refuses this file" in answers[1].json()["detail"]
        assert api.node.objects.problem is None


def test_parts_that_came_to_one_node_are_joined_by_another(tmp_path: Path, s3: S3Service) -> None:
    where = {"objects": s3.new_url(), "s3_endpoint": s3.endpoint}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token-secret").write_bytes(b"the same secret on all the nodes")
    with serve(ApiNode(tmp_path / "a", **where)) as a, serve(ApiNode(tmp_path / "b", **where)) as b:
        begun = a.http.post(f"{INITIATE}-multipart", json={"content_type": "image/png"}).json()
        path = httpx.URL(begun["upload_url"]).path
        parts = [node.http.put(f"{path}/{n}", content=bytes([n]) * 3).json() for n, node in ((1, a), (2, b))]
        assert b.http.post(f"{path}/complete", json={"parts": parts}).status_code == 200
        file = httpx.URL(begun["file_url"]).path
        assert a.http.get(file).content == b.http.get(file).content == b"\1\1\1\2\2\2"
    assert [name for name in s3.files(where["objects"]) if name.startswith("parts/")] == []
