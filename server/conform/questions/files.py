"""Cases 86 to 97: files on their way in and out."""

from __future__ import annotations

import base64
import re
import time
from io import BytesIO
from typing import Any

from PIL import Image

from server.conform.cases import Mismatch, NotAsked, case, described, expect, expect_status, object_of
from server.conform.subject import Subject

OLD_ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?[+-]\d\d:\d\d"
"""All that `datetime.fromisoformat` of Python 3.8 takes."""
GONE_WITHIN_S = 90.0


def initiate(subject: Subject, kind: str = "initiate", storage: str = "fal-cdn-v3") -> dict[str, str]:
    """`upload_url` and `file_url` for a text file."""
    url = f"{subject.areas.rest}/storage/upload/{kind}?storage_type={storage}"
    answer = subject.post(url, {"content_type": "text/plain", "file_name": "a.txt"})
    expect(answer.is_success, described(answer))
    told = object_of(answer)
    for name in ("upload_url", "file_url"):
        expect(isinstance(told.get(name), str), f"{described(answer)} without {name}")
    return {name: str(told[name]) for name in ("upload_url", "file_url")}


def expect_file(subject: Subject, url: str, content: bytes) -> None:
    found = subject.ask("GET", url, with_key=False)
    expect_status(found, 200)
    expect(found.content == content, f"{url} has {len(found.content)} bytes that are not the {len(content)} sent")


def in_parts(url: str, tail: str) -> str:
    path, mark, query = url.partition("?")
    return f"{path}{tail}{mark}{query}"


@case(86, "the JavaScript client's uploads arrive, in one piece and in parts")
def js_uploads(subject: Subject) -> None:
    for content in (b"x", bytes(1000) * 1000):
        urls = initiate(subject)
        expect(subject.ask("PUT", urls["upload_url"], with_key=False, content=content).is_success, "the PUT failed")
        expect_file(subject, urls["file_url"], content)
    urls = initiate(subject, "initiate-multipart")
    parts = []
    for number in (2, 1):
        answer = subject.ask("PUT", in_parts(urls["upload_url"], f"/{number}"), with_key=False, content=b"x" * number)
        expect(answer.is_success, described(answer))
        parts.append({"partNumber": number, "etag": object_of(answer).get("etag")})
    done = subject.post(in_parts(urls["upload_url"], "/complete"), {"parts": parts[::-1]}, with_key=False)
    expect(done.is_success, described(done))
    expect_file(subject, urls["file_url"], b"xxx")


def upload_token(subject: Subject) -> dict[str, Any]:
    answer = subject.post(f"{subject.areas.rest}/storage/auth/token?storage_type=fal-cdn-v3", {})
    expect(answer.is_success, described(answer))
    return object_of(answer)


@case(87, "the Python client's uploads arrive, in one piece and in parts")
def python_uploads(subject: Subject) -> None:
    told = upload_token(subject)
    headers = {"authorization": f"{told.get('token_type')} {told.get('token')}", "content-type": "text/plain"}
    url = f"{subject.areas.cdn}/files/upload"
    answer = subject.ask("POST", url, with_key=False, headers=headers, content=b"text")
    expect(answer.is_success, described(answer))
    expect_file(subject, str(object_of(answer).get("access_url")), b"text")
    begun = subject.ask("POST", f"{told.get('base_url')}/files/upload/multipart", with_key=False, headers=headers)
    expect(begun.is_success, described(begun))
    place = f"{object_of(begun).get('access_url')}/multipart/{object_of(begun).get('uploadId')}"
    parts = []
    for number in (2, 1):
        put = subject.ask("PUT", f"{place}/{number}", with_key=False, headers=headers, content=b"y" * number)
        expect(put.is_success and put.headers.get("etag"), f"{described(put)} without an ETag header")
        parts.append({"partNumber": number, "etag": put.headers["etag"]})
    done = subject.post(f"{place}/complete", {"parts": parts}, with_key=False, headers=headers)
    expect(done.is_success, described(done))
    expect_file(subject, str(object_of(begun)["access_url"]), b"yyy")


@case(88, "the older repository takes a file with the user's key")
def older_repository(subject: Subject) -> None:
    urls = initiate(subject, storage="gcs")
    put = subject.ask("PUT", urls["upload_url"], content=b"pixels")
    expect(put.is_success, described(put))
    expect_file(subject, urls["file_url"], b"pixels")


@case(90, "a part is answered with an ETag header and as JSON")
def parts_for_both(subject: Subject) -> None:
    urls = initiate(subject, "initiate-multipart")
    answer = subject.ask("PUT", in_parts(urls["upload_url"], "/7"), with_key=False, content=b"part")
    expect(answer.is_success, described(answer))
    told, header = object_of(answer), answer.headers.get("etag", "").strip('"')
    expect(told.get("partNumber") == 7, f"partNumber is {told.get('partNumber')!r}")
    expect(header and header == str(told.get("etag")).strip('"'), f"ETag is {header!r}, etag {told.get('etag')!r}")


@case(93, "a file is gone after the time its owner set, and what is no lifetime is ignored")
def lifetimes(subject: Subject) -> None:
    url = f"{subject.areas.rest}/storage/upload/initiate?storage_type=fal-cdn-v3"
    names = ("x-fal-object-lifecycle", "x-fal-object-lifecycle-preference")
    body = {"content_type": "text/plain", "file_name": "a.txt"}
    for wish in ("nonsense", '{"unknown": {}}'):
        expect(subject.post(url, body, headers=dict.fromkeys(names, wish)).is_success, f"{wish} is not ignored")
    short = object_of(subject.post(url, body, headers=dict.fromkeys(names, '{"expiration_duration_seconds": 1}')))
    subject.ask("PUT", str(short.get("upload_url")), with_key=False, content=b"x")
    deadline = time.monotonic() + GONE_WITHIN_S
    while subject.ask("GET", str(short.get("file_url")), with_key=False).status_code == 200:
        expect(time.monotonic() < deadline, f"a file of 1 s was there after {GONE_WITHIN_S:.0f} s")
        time.sleep(0.25)


@case(94, "an upload token says when it expires as an old Python reads it")
def expiry(subject: Subject) -> None:
    told = upload_token(subject).get("expires_at")
    expect(re.fullmatch(OLD_ISO, str(told)), f"expires_at is {told!r}")


@case(95, "a result's picture is what it says, and open to every page", "ran")
def pictures(subject: Subject) -> None:
    entry = object_of(subject.ran)["images"][0]
    found = subject.ask("GET", entry["url"], with_key=False, headers={"origin": "https://page.test"})
    expect_status(found, 200)
    kinds = (found.headers.get("content-type"), entry.get("content_type"))
    expect(kinds[0] == kinds[1], f"served as {kinds[0]}, described as {kinds[1]}")
    allowed = found.headers.get("access-control-allow-origin")
    expect(allowed in ("*", "https://page.test"), f"it allows the origin {allowed}")
    with Image.open(BytesIO(found.content)) as opened:
        told = (entry.get("width"), entry.get("height"))
        expect(opened.size == told, f"it is {opened.size}, described as {told}")


@case(96, "sync_mode answers the picture itself", pictures=1)
def inline_pictures(subject: Subject) -> None:
    answer = subject.post(subject.run_url, subject.input | {"sync_mode": True})
    expect_status(answer, 200)
    url = str(object_of(answer)["images"][0].get("url"))
    expect(url.startswith("data:image/"), f"its url begins with {url[:40]}")
    with Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as opened:
        opened.load()


def picture_call(subject: Subject, url: str) -> Any:
    if subject.picture_endpoint is None:
        raise NotAsked("name an endpoint that takes an image_url with --picture-endpoint")
    address = f"{subject.areas.run}/{subject.picture_endpoint}"
    # Nothing of the input but its prompt: such endpoints have limits of their own.
    return subject.post(address, {"prompt": subject.input["prompt"], "image_url": url})


@case(92, "a data URI is read, parameters of its type included", pictures=1)
def data_uris(subject: Subject) -> None:
    packed = BytesIO()
    Image.new("RGB", (64, 64), "red").save(packed, "PNG")
    data = base64.b64encode(packed.getvalue()).decode()
    expect_status(picture_call(subject, f"data:image/png;name=a.png;base64,{data}"), 200)


@case(97, "an address inside the server's own network is not fetched")
def addresses_inside(subject: Subject) -> None:
    answer = picture_call(subject, "http://127.0.0.1/")
    expect_status(answer, 422)
    detail = object_of(answer).get("detail")
    if not isinstance(detail, list) or not detail:
        raise Mismatch(f"detail is {detail!r}")
    expect(detail[0].get("type") == "file_download_error", f"its type is {detail[0].get('type')}")
