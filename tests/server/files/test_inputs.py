"""Addresses that users name become pixels, or one of fal's errors: a real HTTP server, a real pool process."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError

from server.api.errors import InputError
from server.api.pictures import read_pictures
from server.api.schemas.needs import PictureNeed
from server.api.schemas.pictures import PictureUrl, picture_urls
from server.files import inputs
from server.files.decoding import Limits, Pixels
from server.files.folder_objects import FolderObjects
from server.files.inputs import Inputs
from server.files.picture_pool import PicturePool
from server.http.outgoing import parse_networks
from tests.server.files.test_decoding import packed, quarters

PNG = packed(quarters(), "PNG")
RAW = quarters().tobytes()
PACKED = {
    "gzip": gzip.compress(PNG),
    "deflate": zlib.compress(PNG),
    "plain": PNG,
    "cut": gzip.compress(PNG)[:-20],
    "bomb": gzip.compress(bytes(1_000_000)),
    "other": b"\x0b\x02\x80",
}


class Site(BaseHTTPRequestHandler):
    """An outside server; what it does is in the path."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["host"]))
        _, kind, *rest = self.path.split("/")
        if kind == "redirect":
            self.send_response(302)
            count = int(rest[0])
            self.send_header("location", f"/redirect/{count - 1}" if count else "/picture")
            self.end_headers()
        elif kind == "to":
            self.send_response(302)
            self.send_header("location", "/".join(rest))
            self.end_headers()
        elif kind == "slow":
            time.sleep(1)
        elif kind == "missing":
            self.send_error(404)
        elif kind == "broken-off":
            self.send_response(200)
            self.send_header("content-length", "5000")
            self.end_headers()
            self.wfile.write(PNG[:50])
        elif kind == "packed":
            self.send_response(200)
            self.send_header("content-encoding", rest[0])
            self.end_headers()
            self.wfile.write(PACKED[rest[1]])
        else:
            self.send_response(200)
            self.send_header("content-type", "text/html")  # a lie that must not matter
            body = PNG if kind == "picture" else bytes(int(rest[0]))
            if kind == "announced":
                self.send_header("content-length", rest[0])
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients hang up on purpose."""

    Site.asked = []
    with Quiet(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def pool() -> Iterator[PicturePool]:
    made = PicturePool()
    yield made
    made.close(wait=True)


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


class Reader:
    """Reads one address on a loop of its own."""

    def __init__(self, objects: FolderObjects, pool: PicturePool) -> None:
        self.objects, self.pool = objects, pool

    def __call__(self, url: str, *allowed: str, limits: Limits = inputs.ANY_SIZE) -> Pixels:
        async def main() -> Pixels:
            reader = Inputs(self.objects, self.pool, parse_networks(allowed))
            try:
                (pixels,) = await read_pictures(reader, [PictureNeed(url, ("images", 0))], limits)
                return pixels
            finally:
                await reader.aclose()

        return asyncio.run(main())

    def refused(self, url: str, *allowed: str) -> dict[str, Any]:
        with pytest.raises(InputError) as caught:
            self(url, *allowed)
        (problem,) = caught.value.problems
        assert problem["loc"] == ["body", "images", 0]
        return problem


@pytest.fixture
def read(objects: FolderObjects, pool: PicturePool) -> Reader:
    return Reader(objects, pool)


LOCAL = ("127.0.0.0/8", "::1/128")


def data_uris() -> Sequence[str]:
    packed64 = base64.b64encode(PNG).decode()
    return (
        f"data:image/png;base64,{packed64}",
        f"data:image/png;name=a.png;charset=utf-8;base64,{packed64}",
        f"DATA:text/html;BASE64,{packed64}",
        f"data:;base64,{packed64.rstrip('=')}",
        f"data:image/png;base64,{packed64.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode()}",
        f"data:image/png;base64,{packed64[:40]}\n {packed64[40:]}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    )


@pytest.mark.parametrize("uri", data_uris())
def test_every_spelling_of_a_data_uri(read: Reader, uri: str) -> None:
    assert read(uri) == Pixels(RAW, 32, 16)


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,%%%", "data:;base64,AAAAA", "data:"])
def test_a_broken_data_uri(read: Reader, uri: str) -> None:
    problem = read.refused(uri)
    assert (problem["type"], problem["input"]) == ("file_download_error", uri)
    assert problem["url"].endswith("#file_download_error")


@pytest.mark.parametrize("host", ["https://v3.fal.media", "http://127.0.0.1:1", "https://x.test/cdn"])
def test_our_own_file_is_read_from_the_disk_whatever_the_host(read: Reader, objects: FolderObjects, host: str) -> None:
    key = objects.put(PNG, "text/plain", "txt")
    assert read(f"{host}/files/{key}?download=1").data == RAW
    objects.delete(key)
    assert (
        read.refused(f"{host.replace('https://', 'http://127.0.0.1:1/')}/files/{key}")["type"] == "file_download_error"
    )


@pytest.mark.parametrize("name", [f"{'0' * 32}.png", "unknown.png"])
def test_a_file_of_ours_that_is_gone_is_told_before_the_network(read: Reader, name: str) -> None:
    words = "could not be downloaded: this server has no such file, or no longer, and 127.0.0.1 is not on the public"
    assert words in read.refused(f"http://127.0.0.1:1/files/{name}")["msg"]
    assert "no such file" not in read.refused("http://127.0.0.1:1/else/a.png")["msg"]


def test_an_outside_picture(read: Reader, site: str) -> None:
    assert read(f"{site}/picture", *LOCAL).data == RAW
    assert Site.asked[-1][1] == site.removeprefix("http://")


def test_redirects_are_followed_by_name_and_not_for_ever(read: Reader, site: str) -> None:
    assert read(f"{site}/redirect/{inputs.MAX_REDIRECTS - 1}", *LOCAL).data == RAW
    assert {host for _, host in Site.asked} == {site.removeprefix("http://")}
    assert "redirects more than" in read.refused(f"{site}/redirect/{inputs.MAX_REDIRECTS}", *LOCAL)["msg"]


@pytest.mark.parametrize("target", ["http://10.0.0.1/x", "http://[::ffff:10.0.0.1]/", "file:///etc/passwd", "ftp://x/"])
def test_a_redirect_leads_nowhere_that_is_not_allowed_itself(read: Reader, site: str, target: str) -> None:
    assert read.refused(f"{site}/to/{target}", *LOCAL)["type"] == "file_download_error"


@pytest.mark.parametrize("target", ["data:image/png;base64,iVBORw0KGgo=", "file:///etc/passwd", "FTP://x/"])
def test_a_redirect_to_what_is_not_followed_is_named(read: Reader, site: str, target: str) -> None:
    words = f"it redirects to a {target.partition(':')[0].lower()}: address, and only http and https are followed"
    assert words in read.refused(f"{site}/to/{target}", *LOCAL)["msg"]


def test_a_body_that_breaks_off_is_told_so(read: Reader, site: str) -> None:
    problem = read.refused(f"{site}/broken-off", *LOCAL)
    assert problem["type"] == "file_download_error"
    assert "its server closed the connection after 50 of 5000 bytes" in problem["msg"]


@pytest.mark.parametrize(
    "path", ["gzip/gzip", "x-gzip/gzip", "deflate/deflate", "GZIP/gzip", "gzip/plain", "br/plain", "identity/plain"]
)
def test_a_body_packed_unasked_or_only_said_to_be_is_read(read: Reader, site: str, path: str) -> None:
    assert read(f"{site}/packed/{path}", *LOCAL).data == RAW


@pytest.mark.parametrize("path", ["br/other", "gzip/cut", "gzip/other", "gzip, br/gzip"])
def test_a_body_packed_unasked_that_cannot_be_unpacked_is_told_so(read: Reader, site: str, path: str) -> None:
    problem = read.refused(f"{site}/packed/{path.replace(' ', '')}", *LOCAL)
    assert problem["type"] == "file_download_error"
    assert "unasked, and it cannot be unpacked" in problem["msg"]


def test_a_packed_body_is_bounded_by_what_it_unpacks_to(
    read: Reader, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 100_000)
    assert read.refused(f"{site}/packed/gzip/bomb", *LOCAL)["type"] == "file_too_large"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:1/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://0x7f000001/",
        "file:///etc/passwd",
        "/etc/passwd",
        "iVBORw0KGgo=",
        "http://",
        "http://[",
        "https://x.test:99999/",
        "http://\x00/",
    ],
)
def test_what_may_not_be_fetched(read: Reader, url: str) -> None:
    assert read.refused(url)["type"] == "file_download_error"


@pytest.mark.parametrize("path", ["missing", "slow"])
def test_servers_that_do_not_deliver(read: Reader, site: str, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(inputs, "SILENCE_S", 0.2)
    assert read.refused(f"{site}/{path}", *LOCAL)["type"] == "file_download_error"


@pytest.mark.parametrize("path", ["announced/200000", "sent/200000"])
def test_a_file_that_is_too_large(read: Reader, site: str, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 100_000)
    problem = read.refused(f"{site}/{path}", *LOCAL)
    assert (problem["type"], problem["ctx"]) == ("file_too_large", {"max_size": 100_000})
    own = read.objects.put(bytes(100_001), "image/png", "png")
    assert read.refused(f"http://x.test/files/{own}")["type"] == "file_too_large"


def test_what_cannot_be_decoded_keeps_its_kind(read: Reader, site: str) -> None:
    assert read.refused(f"{site}/sent/100", *LOCAL)["type"] == "image_load_error"
    gif = base64.b64encode(packed(quarters(), "GIF")).decode()
    problem = read.refused(f"data:image/png;base64,{gif}")
    assert (problem["type"], problem["ctx"]["supported_formats"]) == (
        "unsupported_image_format",
        ["jpeg", "png", "webp"],
    )


def test_the_event_loop_turns_while_a_picture_is_decoded(objects: FolderObjects, pool: PicturePool) -> None:
    noise = packed(Image.effect_noise((2000, 2000), 80).convert("RGB"), "PNG", compress_level=1)
    key = objects.put(noise, "image/png", "png")

    async def main() -> tuple[int, Pixels]:
        reader = Inputs(objects, pool)
        task = asyncio.create_task(reader.read(f"/files/{key}"))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        await reader.aclose()
        return turns, await task

    turns, picture = asyncio.run(main())
    with Image.open(BytesIO(noise)) as opened:
        assert picture.data == opened.tobytes()
    assert turns > 5


class Nested(BaseModel):
    """An input with pictures at every depth."""

    image_url: PictureUrl
    mask_url: PictureUrl | None = None
    images: list[PictureUrl] = []
    layers: list[dict[str, PictureUrl | str]] = []


def test_pictures_are_found_at_every_depth_and_prompts_are_not() -> None:
    parsed = Nested.model_validate({"image_url": "a", "images": ["b", "c"], "layers": [{"url": "d"}]})
    found = [(loc, str(url)) for loc, url in picture_urls(parsed)]
    assert found == [
        (("image_url",), "a"),
        (("images", 0), "b"),
        (("images", 1), "c"),
        (("layers", 0, "url"), "d"),
    ]
    with pytest.raises(ValidationError, match="at least 1 character"):
        Nested.model_validate({"image_url": ""})
    schema = TypeAdapter(PictureUrl).json_schema()
    assert (schema["type"], schema["minLength"]) == ("string", 1)
