"""Cases 86 to 97: files, on their way in and out, and pictures as inputs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conformance.child import Child
from tests.conformance.conftest import KEY, NewChild
from tests.conformance.picture_endpoint import PICTURES
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

MIB = 1 << 20

UPLOAD_JS = """
    const { createHash, randomFillSync } = await import("node:crypto")
    const bytes = Buffer.alloc(size)
    for (let k = 0; k < size; k += 1 << 20) randomFillSync(bytes, k, Math.min(1 << 20, size - k))
    const url = await fal.storage.upload(new File([bytes], "a.bin", { type: "application/x-test" }))
    return { url, digest: createHash("sha256").update(bytes).digest("hex") }
"""

UPLOAD_PYTHON = """
    import hashlib, random, tempfile
    with tempfile.NamedTemporaryFile(suffix=".bin", delete=False) as file:
        block = random.randbytes(1 << 20)
        digest = hashlib.sha256()
        for start in range(0, size, 1 << 20):
            piece = (start.to_bytes(8, "big") + block)[: min(1 << 20, size - start)]
            digest.update(piece)
            file.write(piece)
    try:
        if is_async:
            url = await fal_client.AsyncClient().upload_file(file.name)
        else:
            url = fal_client.SyncClient().upload_file(file.name)
    finally:
        os.unlink(file.name)
    return {"url": url, "digest": digest.hexdigest()}
"""


def key_of(url: str) -> str:
    return url.rpartition("/")[2]


def digest_of(server: Scripted, url: str) -> str:
    """SHA-256 of a file as it is served, without holding it."""
    digest = hashlib.sha256()
    with httpx.stream("GET", f"{server.url}/files/{key_of(url)}", timeout=60, verify=False) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_bytes(MIB):
            digest.update(chunk)
    return digest.hexdigest()


def description(server: Scripted, url: str) -> dict[str, Any]:
    """What the server has noted of a file."""
    found: dict[str, Any] = json.loads((stored(server) / f"{key_of(url)}.json").read_text())
    return found


def stored(server: Scripted) -> Path:
    return server.server.data_dir / "files"


def peak_mib(server: Scripted) -> float:
    """The most memory that the server's process has ever had, in MiB; 0 where no Linux tells it."""
    status = Path(f"/proc/{server.server.pid}/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) / 1024 if match else 0.0


def discard(server: Scripted, url: str) -> None:
    """Large files are not left lying until the end of the session."""
    (stored(server) / key_of(url)).unlink()


@pytest.mark.case(86)
@pytest.mark.parametrize(("size", "puts"), [(1, 1), (10**6, 1), (90 * MIB, 1), (90 * MIB + 1, 10)])
def test_086_js_uploads_of_every_size(server: Scripted, js: Child, record: Record, size: int, puts: int) -> None:
    before = peak_mib(server)
    told = js(UPLOAD_JS, size=size)
    assert digest_of(server, told["url"]) == told["digest"]
    assert description(server, told["url"])["size"] == size
    assert description(server, told["url"])["content_type"] == "application/x-test"
    seen = record.of("PUT", "/files/upload/")
    assert (len(seen), {entry.status for entry in seen}) == (puts, {200})
    assert all("authorization" not in entry.headers for entry in seen)
    assert len(record.of("POST", "/complete")) == (1 if puts > 1 else 0)
    assert peak_mib(server) - before < 48, "the file is not held in memory"
    discard(server, told["url"])


@pytest.mark.case(87)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("size", "parts"), [(100 * MIB, 0), (100 * MIB + 1, 11)])
def test_087_python_uploads_of_every_size(
    server: Scripted, proxied: Child, record: Record, size: int, parts: int, is_async: bool
) -> None:
    before = peak_mib(server)
    told = proxied(UPLOAD_PYTHON, size=size, is_async=is_async)
    assert digest_of(server, told["url"]) == told["digest"]
    assert description(server, told["url"])["size"] == size
    seen = record.of("PUT", "/multipart/")
    assert sorted(int(entry.path.rpartition("/")[2]) for entry in seen) == list(range(1, parts + 1))
    assert all(entry.answer_headers["etag"] for entry in seen)
    # One piece goes to the CDN's fixed name, parts to the address that came with the token.
    hosts = {entry.headers["host"] for entry in record.of("POST", "/files/upload")}
    assert hosts == {server.url.removeprefix("http://") if parts else "v3.fal.media"}
    # Ten parts come at once, each through a connection of its own.
    assert peak_mib(server) - before < 96, "the file is not held in memory"
    discard(server, told["url"])


@pytest.mark.case(88)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_088_python_uploads_to_the_older_repository(
    server: Scripted, proxied: Child, record: Record, is_async: bool
) -> None:
    code = """
        if is_async:
            return await fal_client.AsyncClient().upload(b"pixels", "image/png", repository="fal")
        return fal_client.SyncClient().upload(b"pixels", "image/png", repository="fal")
    """
    url = proxied(code, is_async=is_async)
    assert httpx.get(f"{server.url}/files/{key_of(url)}", verify=False).content == b"pixels"
    (initiated,) = record.of("POST", "/storage/upload/initiate")
    assert initiated.query == "storage_type=gcs"
    (put,) = record.of("PUT", "/files/upload/")
    assert (put.status, put.headers["authorization"][:4]) == (200, "Key ")


class Failing(BaseHTTPRequestHandler):
    """A CDN that is down."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Quietly."""


class Site(BaseHTTPRequestHandler):
    """An outside site with one picture, declared as what it is not."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *_: object) -> None:
        """Quietly."""


def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def failing_cdn() -> Iterator[str]:
    yield from _serving(Failing)


@pytest.fixture
def site() -> Iterator[str]:
    yield from _serving(Site)


@pytest.mark.case(89)
def test_089_when_the_cdn_fails_python_falls_back(
    server: Scripted, proxied: Child, record: Record, failing_cdn: str
) -> None:
    code = """
        there, fal_client.client.CDN_URL = fal_client.client.CDN_URL, failing
        try:
            return [
                fal_client.SyncClient().upload(b"pixels", "image/png"),
                await fal_client.AsyncClient().upload(b"pixels", "image/png"),
            ]
        finally:
            fal_client.client.CDN_URL = there
    """
    for url in proxied(code, failing=failing_cdn):
        assert httpx.get(f"{server.url}/files/{key_of(url)}", verify=False).content == b"pixels"
    assert [seen.query for seen in record.of("POST", "/storage/upload/initiate")] == ["storage_type=gcs"] * 2


def picture() -> Image.Image:
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, (x + y) * 3], axis=-1).astype(np.uint8))


def packed(kind: str, **options: Any) -> bytes:
    target = BytesIO()
    picture().save(target, kind, **options)
    return target.getvalue()


PNG = packed("PNG")
SEEN = {"width": 40, "height": 24, "sha256": hashlib.sha256(picture().tobytes()).hexdigest()}


@pytest.mark.case(91)
def test_091_files_in_js_inputs_arrive_as_pixels(js: Child, record: Record) -> None:
    code = """
        const file = (type) => new File([Buffer.from(png, "base64")], "a.png", { type })
        const input = {
          image_url: file("image/png"),
          images: [file("text/html"), [file("image/png"), file("")]],
          layers: [{ mask: new Blob([Buffer.from(png, "base64")]) }],
        }
        return (await fal.run(endpoint, { input })).data
    """
    told = js(code, endpoint=PICTURES, png=base64.b64encode(PNG).decode())
    locs = [["image_url"], ["images", 0], ["images", 1, 0], ["images", 1, 1], ["layers", 0, "mask"]]
    assert told["pictures"] == [{"loc": loc} | SEEN for loc in locs]
    assert re.fullmatch(r"https?://[^/]+/files/[0-9a-f]{32}\.png", told["input"]["image_url"])
    assert len(record.of("PUT", "/files/upload/")) == 5


@pytest.mark.case(91)
def test_091_uploads_of_python_arrive_as_pixels(proxied: Child) -> None:
    """To fal's own host names, which are led here; what was sent has an address that others can open."""
    code = """
        import base64
        url = fal_client.upload(base64.b64decode(png), "image/png")
        return url, fal_client.run(endpoint, {"image_url": url})
    """
    url, told = proxied(code, endpoint=PICTURES, png=base64.b64encode(PNG).decode())
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/files/[0-9a-f]{32}\.png", url)
    assert told["pictures"] == [{"loc": ["image_url"]} | SEEN]


@pytest.mark.case(92)
def test_092_data_uris_arrive_as_pixels(python: Child, http: httpx.Client) -> None:
    code = """
        import base64
        uri = fal_client.encode(base64.b64decode(png), "image/png")
        return fal_client.run(endpoint, {"images": [uri, uri.replace(";base64", ";name=a.png;charset=utf-8;base64")]})
    """
    told = python(code, endpoint=PICTURES, png=base64.b64encode(PNG).decode())
    assert told["pictures"] == [{"loc": ["images", index]} | SEEN for index in range(2)]
    percent = "".join(f"%{byte:02X}" for byte in PNG)
    webp = base64.b64encode(packed("WEBP", lossless=True)).decode()
    uris = [f"data:,{percent}", f"data:image/png;x=y,{percent}", f"data:image/jpeg;base64,{webp}"]
    answer = http.post(f"/run/{PICTURES}", json={"images": uris}).json()
    assert answer["pictures"] == [{"loc": ["images", index]} | SEEN for index in range(3)]


@pytest.mark.case(93)
def test_093_files_live_as_long_as_their_owner_says(server: Scripted, proxied: Child, js: Child) -> None:
    code = """
        from fal_client import StorageSettings
        short = [StorageSettings(expires_in=seconds) for seconds in ("immediate", 2)]
        return [fal_client.upload(b"x", "text/plain", lifecycle=life, repository=repository)
                for repository in ("fal_v3", "fal") for life in short]
    """
    minute, gone, minute_too, gone_too = proxied(code)
    code = """
        const life = (expiresIn) => ({ lifecycle: { expiresIn } })
        const put = (expiresIn) => fal.storage.upload(new Blob(["x"]), life(expiresIn))
        const { data } = await fal.subscribe(endpoint, { input, storageSettings: { expiresIn: 2 } })
        return [await put("immediate"), await put(2), data.images[0].url]
    """
    js_minute, js_gone, result = js(code, endpoint=DEV, input={"prompt": "a fox", **TINY})
    for url in (minute, minute_too, js_minute):
        written = (stored(server) / key_of(url)).stat().st_mtime
        assert 55 < description(server, url)["expires_at"] - written <= 61
    for url in (gone, gone_too, js_gone, result):
        address = f"{server.url}/files/{key_of(url)}"
        server.until(lambda address=address: httpx.get(address, verify=False).status_code == 404)  # type: ignore[misc]


@pytest.mark.case(93)
@pytest.mark.parametrize("wish", ["", "nonsense", "[1]", '{"expiration_duration_seconds": "soon"}', '{"unknown": {}}'])
def test_093_what_is_no_lifecycle_is_ignored(server: Scripted, http: httpx.Client, wish: str) -> None:
    headers = {"x-fal-object-lifecycle": wish, "x-fal-object-lifecycle-preference": wish}
    answer = http.post("/cdn/files/upload", content=b"x", headers=headers)
    assert answer.status_code == 200
    plain = http.post("/cdn/files/upload", content=b"x")
    lives = [description(server, told.json()["access_url"])["expires_at"] for told in (answer, plain)]
    assert lives[1] - lives[0] < 60
    assert http.post(f"/run/{DEV}", json={"prompt": "a fox", **TINY}, headers=headers).status_code == 200


@pytest.mark.case(93)
def test_093_a_file_is_read_by_whom_its_owner_lets(protected: Scripted, new_js: NewChild) -> None:
    code = """
        const put = (initialAcl) => fal.storage.upload(new Blob(["x"]), { lifecycle: { initialAcl } })
        const options = { input, storageSettings: { initialAcl: { default: "forbid" } } }
        return [
          await put({ default: "allow" }), await put({ default: "forbid" }), await put({ default: "hide" }),
          (await fal.run(endpoint, options)).data.images[0].url,
        ]
    """
    urls = new_js(protected)(code, endpoint=DEV, input={"prompt": "a fox", **TINY})
    owner = {"authorization": f"Key {KEY}"}
    with httpx.Client(timeout=60, verify=False) as http:
        answers = [http.get(f"{protected.url}/files/{key_of(url)}") for url in urls]
        assert [answer.status_code for answer in answers] == [200, 403, 404, 403]
        assert all("detail" in answer.json() for answer in answers[1:])
        answers = [http.get(f"{protected.url}/files/{key_of(url)}", headers=owner) for url in urls]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert [answer.headers["cache-control"][:6] for answer in answers] == ["public"] + ["privat"] * 3


@pytest.mark.case(95)
def test_095_a_result_is_what_it_says_and_open_to_every_page(protected: Scripted) -> None:
    size = {"width": 96, "height": 64}
    with httpx.Client(base_url=protected.url, timeout=60, verify=False) as http:
        for output_format in ("jpeg", "png"):
            body = {"prompt": "a fox", **TINY, "image_size": size, "output_format": output_format}
            answer = http.post(f"/run/{DEV}", json=body, headers={"authorization": f"Key {KEY}"})
            (entry,) = answer.json()["images"]
            file = http.get(entry["url"], headers={"origin": "https://page.test"})
            assert file.status_code == 200
            assert file.headers["content-type"] == entry["content_type"] == f"image/{output_format}"
            assert file.headers["access-control-allow-origin"] == "*"
            assert file.headers["cross-origin-resource-policy"] == "cross-origin"
            with Image.open(BytesIO(file.content)) as opened:
                assert (opened.format, opened.size) == (output_format.upper(), (entry["width"], entry["height"]))
            assert (entry["width"], entry["height"], entry["file_size"]) == (96, 64, len(file.content))


@pytest.mark.case(96)
def test_096_sync_mode_answers_the_picture_and_stores_none(server: Scripted, python: Child, js: Child) -> None:
    before = sorted(stored(server).iterdir())
    arguments = {"prompt": "a fox", "sync_mode": True, **TINY}
    outputs = [
        python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=arguments),
        python("return fal_client.subscribe(endpoint, arguments)", endpoint=DEV, arguments=arguments),
        js("return (await fal.subscribe(endpoint, { input })).data", endpoint=DEV, input=arguments),
    ]
    for output in outputs:
        (entry,) = output["images"]
        head, _, data = entry["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(BytesIO(base64.b64decode(data))) as opened:
            assert opened.size == (64, 64)
    assert sorted(stored(server).iterdir()) == before


@pytest.mark.case(97)
@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost/a.png", "http://169.254.169.254/latest/"])
def test_097_addresses_inside_are_refused(python: Child, js: Child, url: str) -> None:
    failed = python.fails("return fal_client.run(endpoint, arguments)", endpoint=PICTURES, arguments={"images": [url]})
    assert failed.status == 422
    (entry,) = failed.facts["message"]
    assert (entry["type"], entry["loc"], entry["input"]) == ("file_download_error", ["body", "images", 0], url)
    assert failed.facts["headers"]["x-fal-retryable"] == "false"
    failed = js.fails("return await fal.run(endpoint, { input })", endpoint=PICTURES, input={"image_url": url})
    assert (failed.name, failed.facts["fieldErrors"][0]["type"]) == ("ValidationError", "file_download_error")


@pytest.mark.case(97)
def test_097_addresses_that_the_operator_allows_arrive_as_pixels(impatient: Scripted, site: str) -> None:
    answer = httpx.post(f"{impatient.url}/run/{PICTURES}", json={"images": [f"{site}/a.gif"]}, timeout=60, verify=False)
    assert answer.json()["pictures"] == [{"loc": ["images", 0]} | SEEN]
