"""`--signed-urls-s`: files by signed addresses that end, by their owner's key, and in no other way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.datastructures import Headers

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

ANN, BOB = {"authorization": "Key ann:secret"}, {"authorization": "Key bob:secret"}
DEV = "/queue/fal-ai/flux/dev"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, api_keys=("ann:secret", "bob:secret"), signed_urls_s=600)) as served:
        yield served


def drawn(api: Api) -> str:
    """The address of a picture in Ann's result."""
    handle = api.http.post(DEV, json={"prompt": "a fox"}, headers=ANN).json()
    api.node.finish(api.node.claim())
    return str(api.http.get(handle["response_url"], headers=ANN).json()["images"][0]["url"])


def tenant(api: Api, headers: dict[str, str]) -> str:
    return api.node.keys.check(Headers(headers)).tenant


def bare(address: str) -> str:
    return address.partition("?")[0]


def test_the_address_in_a_result_opens_without_a_key_and_only_as_it_is(api: Api) -> None:
    address = drawn(api)
    assert "expires=" in address
    assert api.http.get(address).status_code == 200
    expires, signature = urlsplit(address).query.split("&")
    other = api.node.objects.put(b"x", "image/png", "png")
    for wrong in (
        bare(address),
        f"{bare(address)}?{expires}",
        f"{bare(address)}?{expires}&{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{bare(address)}?{expires}0&{signature}",
        f"/files/{other}?{expires}&{signature}",
        f"/cdn/files/{other}?{expires}&{signature}",
        f"/files/{'0' * 32}.png",
    ):
        answer = api.http.get(wrong)
        assert (answer.status_code, "signed" in answer.json()["detail"]) == (403, True), wrong


def test_the_owners_key_opens_it_and_another_does_not(api: Api) -> None:
    address = bare(drawn(api))
    own = api.http.get(address, headers=ANN)
    assert (own.status_code, own.headers["cache-control"]) == (200, "private, no-store")
    assert api.http.get(address, headers=BOB).status_code == 403
    assert api.http.get(address, headers={"authorization": "Key ann:wrong"}).status_code == 403


def test_an_address_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    address = drawn(api)
    ended = float(urlsplit(address).query.partition("=")[2].partition("&")[0])
    monkeypatch.setattr(api.node.objects._addresses, "_clock", lambda: ended)
    assert api.http.get(address).status_code == 403
    assert api.http.head(address).status_code == 403
    assert api.http.get(address, headers={"if-none-match": "*", "range": "bytes=0-1"}).status_code == 403


def test_heads_ranges_and_caches_work_with_it(api: Api) -> None:
    address = drawn(api)
    head = api.http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    part = api.http.get(address, headers={"range": "bytes=0-3"})
    assert (part.status_code, len(part.content)) == (206, 4)
    max_age = int(head.headers["cache-control"].partition("max-age=")[2].partition(",")[0])
    assert 0 < max_age <= 660, "no cache keeps it longer than its address holds"
    assert api.http.get(address, headers={"if-none-match": head.headers["etag"]}).status_code == 304


def test_a_picture_of_another_is_no_input_without_its_signature(api: Api) -> None:
    address = drawn(api)
    find, bob = api.node.objects.find, tenant(api, BOB)
    assert find(bare(address), tenant(api, ANN)) is not None
    assert find(bare(address), bob) is None
    assert find(address, bob) is not None, "who was given the address may use it"


def test_uploads_and_searches_hand_out_signed_addresses(api: Api) -> None:
    initiated = api.http.post(
        "/rest/storage/upload/initiate", json={"content_type": "image/png", "file_name": "a.png"}, headers=ANN
    ).json()
    assert api.http.put(initiated["upload_url"], content=b"a picture").status_code == 200
    assert api.http.get(initiated["file_url"]).content == b"a picture"
    whole = api.http.post("/cdn/files/upload", content=b"another", headers=ANN).json()
    assert api.http.get(whole["access_url"]).content == b"another"
    drawn(api)
    search = {"endpoint_id": "fal-ai/flux/dev", "expand": "payloads"}
    found = api.http.get("/v1/models/requests/by-endpoint", params=search, headers=ANN).json()
    (image,) = found["items"][0]["json_output"]["images"]
    assert api.http.get(image["url"]).status_code == 200


def test_a_hidden_file_stays_hidden_behind_a_signature(api: Api) -> None:
    key = api.node.objects.put(b"x", "image/png", "png", access="hide", tenant=tenant(api, ANN))
    address = api.node.objects.signed(f"/files/{key}")
    assert api.http.get(address).status_code == 404
    assert api.http.get(address, headers=ANN).status_code == 200


def test_on_an_open_server_the_signature_is_all_there_is(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, signed_urls_s=600)) as api:
        address = f"/files/{api.node.objects.put(b'x', 'image/png', 'png')}"
        assert api.http.get(address).status_code == 403
        assert api.http.get(api.node.objects.signed(address)).status_code == 200
