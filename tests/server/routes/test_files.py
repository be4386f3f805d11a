"""Files by address: ranges, safety headers, and nothing but what was stored."""

from __future__ import annotations

import pytest

from tests.server.api_server import Api

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def key(api: Api) -> str:
    return put_picture(api)


@pytest.fixture
def stored(anywhere: Api) -> str:
    return put_picture(anywhere)


def put_picture(api: Api) -> str:
    return api.node.objects.put(CONTENT, "image/png", "png", file_name="fox “1”.png")


@pytest.mark.parametrize("prefix", ["/files", "/cdn/files"])
def test_a_file_is_public_and_harmless(anywhere: Api, stored: str, prefix: str) -> None:
    answer = anywhere.http.get(f"{prefix}/{stored}")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].startswith("inline")


ACTIVE = [
    ("text/html", "html"),
    ("image/svg+xml", "svg"),
    ("text/xml", "xml"),
    ("application/xhtml+xml", "xhtml"),
    ("application/pdf", "pdf"),
    ("text/javascript", "js"),
    ("multipart/x-mixed-replace", "bin"),
]


@pytest.mark.parametrize("name", [None, "a.png"])
@pytest.mark.parametrize(("kind", "suffix"), ACTIVE)
def test_only_pictures_of_pixels_are_shown_by_a_browser(api: Api, kind: str, suffix: str, name: str | None) -> None:
    key = api.node.objects.put(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", kind, suffix, name)
    answer = api.http.get(f"/files/{key}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == kind + ("; charset=utf-8" if kind.startswith("text/") else "")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize(
    "path",
    [
        "../jobs.db", "..%2fjobs.db", "%2e%2e/jobs.db", "..%5cjobs.db", "....//jobs.db", "%00", "/etc/passwd",
        "%2fetc%2fpasswd",
        "{key}%00.png", "{key}/", "{key}.json", "{key}.part", "{key}/../{key}", "{key}?x=../", "a" * 5000,
        "\u202e{key}", "{KEY}",        "con", "{key}::$DATA", "~root", "*", "",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder_or_to_what_lies_beside_a_file(api: Api, key: str, path: str) -> None:
    answer = api.http.get("/files/" + path.format(key=key, KEY=key.upper()))
    is_the_file = path in ("{key}/", "{key}?x=../", "{key}/../{key}")
    assert answer.status_code in ((200, 404) if is_the_file else (404,))
    assert "root:" not in answer.text
    if answer.status_code == 200:
        assert answer.content == CONTENT


def test_caches_keep_a_file_no_longer_than_it_lives(anywhere: Api, stored: str) -> None:
    def max_age(name: str) -> int:
        directives = anywhere.http.get(f"/files/{name}").headers["cache-control"].split(", ")
        return int(directives[1].removeprefix("max-age="))

    assert max_age(stored) == 365 * 86400
    assert 0 <= max_age(anywhere.node.objects.put(CONTENT, "image/png", "png", ttl_s=600)) <= 600


def test_files_are_served_on_every_host_name(api: Api, key: str) -> None:
    for host in ("queue.fal.run", "v3.fal.media", "fal.run"):
        assert api.http.get(f"/files/{key}", headers={"host": host}).content == CONTENT


def test_head_says_the_size(anywhere: Api, stored: str) -> None:
    answer = anywhere.http.head(f"/files/{stored}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=1000-", 206, CONTENT[1000:]),
        ("bytes=-5", 206, CONTENT[-5:]),
        ("bytes=9999-", 416, None),
        ("bytes=0-1,1000-1001", 206, None),
    ],
)
def test_ranges(anywhere: Api, stored: str, wanted: str, status: int, content: bytes | None) -> None:
    answer = anywhere.http.get(f"/files/{stored}", headers={"range": wanted})
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content


def test_an_unchanged_file_is_not_sent_again(anywhere: Api, stored: str) -> None:
    etag = anywhere.http.get(f"/files/{stored}").headers["etag"]
    again = anywhere.http.get(f"/files/{stored}", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/files/nothing.png", "/files/", "/files", "/files/..%2fjobs.db", "/files/%2e%2e%2fjobs.db", "/cdn/other", "/cdn"],
)
def test_other_names_are_404(api: Api, path: str) -> None:
    answer = api.http.get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "File not found"})


def test_files_cannot_be_written_by_name(api: Api, key: str) -> None:
    assert api.http.put(f"/files/{key}", content=b"x").status_code == 405
    assert api.http.delete(f"/files/{key}").status_code == 405


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("image/png", None),
        ("Image/JPEG; q=1", None),
        ("text/plain; charset=utf-8", None),
        ("image/svg+xml", "attachment"),
        ("text/html", "attachment"),
        ("TEXT/HTML; charset=utf-8", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("application/pdf", "attachment"),
        ("application/octet-stream", "attachment"),
        ("", "attachment"),
    ],
)
def test_what_could_hold_a_script_is_saved_and_not_shown(api: Api, content_type: str, shown: str | None) -> None:
    key = api.node.objects.put(b"<script>", content_type, "bin")
    answer = api.http.get(f"/files/{key}")
    assert answer.headers.get("content-disposition") == shown
    assert answer.headers["x-content-type-options"] == "nosniff"
