"""Which area a request means, by host, by prefix and by proxy target, and the addresses that answer it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.areas import Area, Target, resolve_target
from server.gateway.origins import Own
from server.http.errors import PlainError

OWN = "flux.example.com:8443"


def come(
    path: str,
    host: str = OWN,
    *,
    method: str = "GET",
    scheme: str = "https",
    client: str = "203.0.113.9",
    public_url: str | None = None,
    plain_port: int | None = None,
    **headers: str,
) -> Target:
    raw, _, query = path.partition("?")
    lines = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in lines.items()],
        "client": (client, 1),
        "server": ("127.0.0.1", 8000),
    }
    return resolve_target(scope, Own(public_url, plain_port))


def proxied(target: str, **headers: str) -> Target:
    return come("/api/fal/proxy", method="POST", x_fal_target_url=target, **headers)


@pytest.mark.parametrize(
    ("host", "path", "area", "inner"),
    [
        (OWN, "/run/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        (OWN, "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("fal.run", "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        (OWN, "/queue/fal-ai/flux/dev", Area.QUEUE, "/fal-ai/flux/dev"),
        ("queue.fal.run", "/fal-ai/flux/dev", Area.QUEUE, "/fal-ai/flux/dev"),
        ("QUEUE.Example.com:8443", "/fal-ai/flux/dev", Area.QUEUE, "/fal-ai/flux/dev"),
        (OWN, "/rest/tokens", Area.REST, "/tokens"),
        ("rest.fal.ai", "/tokens", Area.REST, "/tokens"),
        ("rest.alpha.fal.ai", "/tokens", Area.REST, "/tokens"),
        (OWN, "/cdn/files/upload", Area.CDN, "/files/upload"),
        ("v3.fal.media", "/files/upload", Area.CDN, "/files/upload"),
        ("v3b.fal.media", "/files/x", Area.CDN, "/files/x"),
        ("fal.media", "/files/x", Area.CDN, "/files/x"),
        (OWN, "/ws/fal-ai/flux/dev", Area.WS, "/fal-ai/flux/dev"),
        ("ws.fal.run", "/fal-ai/flux/dev", Area.WS, "/fal-ai/flux/dev"),
        (OWN, "/files/x.png", Area.CDN, "/files/x.png"),
        ("queue.fal.run", "/files/x.png", Area.CDN, "/files/x.png"),
        (OWN, "/livez", Area.SYSTEM, "/livez"),
        (OWN, "/v1/models", Area.SYSTEM, "/v1/models"),
        (OWN, "/", Area.SYSTEM, ""),
        (OWN, "/.well-known/jwks.json", Area.REST, "/.well-known/jwks.json"),
        ("localhost", "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("queue", "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("queuefal.run", "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("queue.example.com", "/run/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("rest.example.com", "/queue/fal-ai/flux/dev", Area.QUEUE, "/fal-ai/flux/dev"),
        ("rest.example.com", "/fal-ai/flux/dev", Area.RUN, "/fal-ai/flux/dev"),
        ("ws.example.com", "/v1/images/generations", Area.SYSTEM, "/v1/images/generations"),
        ("queue.example.com", "/livez", Area.SYSTEM, "/livez"),
        ("queue.fal.run", "/livez", Area.QUEUE, "/livez"),
        ("queue.fal.run.", "/fal-ai/flux/dev", Area.QUEUE, "/fal-ai/flux/dev"),
        ("api.fal.ai", "/v1/models", Area.SYSTEM, "/v1/models"),
        ("fal.ai", "/models/fal-ai/flux/dev/llms.txt", Area.SYSTEM, "/models/fal-ai/flux/dev/llms.txt"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_host_and_prefix_decide_the_area(host: str, path: str, area: Area, inner: str, slash: str) -> None:
    target = come(path.rstrip("/") + slash, host)
    assert (target.area, target.path) == (area, inner)


def test_follow_ups_without_prefix_belong_to_the_queue() -> None:
    target = come("/fal-ai/flux/requests/abc/status/")
    assert target.area is Area.QUEUE
    assert target.request_id == "abc"
    assert target.follow_up is not None
    assert target.follow_up.action == "status"


@pytest.mark.parametrize(
    ("path", "host", "scheme", "base"),
    [
        ("/queue/fal-ai/flux/dev", OWN, "https", f"https://{OWN}/queue"),
        ("/fal-ai/flux/dev", "queue.fal.run", "https", "https://queue.fal.run"),
        ("/fal-ai/flux/dev", "queue.example.com:8443", "https", "https://queue.example.com:8443"),
        ("/fal-ai/flux/requests/abc", "127.0.0.1:8000", "http", "http://127.0.0.1:8000"),
        ("/queue/fal-ai/flux/dev", "[::1]:8000", "http", "http://[::1]:8000/queue"),
        ("/run/fal-ai/flux/dev", OWN, "https", f"https://{OWN}/queue"),
    ],
)
def test_addresses_follow_how_the_caller_came(path: str, host: str, scheme: str, base: str) -> None:
    target = come(path, host, scheme=scheme)
    assert target.base == base
    assert target.origin == base.removesuffix("/queue")


@pytest.mark.parametrize("path", ["/queue/fal-ai/flux/dev", "/fal-ai/flux/requests/abc"])
def test_a_public_url_wins(path: str) -> None:
    assert come(path, public_url="https://pub.example").base == "https://pub.example/queue"


def test_forwarded_headers_count_from_this_machine_only() -> None:
    forwarded = {"x_forwarded_proto": "https", "x_forwarded_host": "fal.example.com"}
    inside = come("/queue/a/b", "127.0.0.1:8000", scheme="http", client="127.0.0.1", **forwarded)
    outside = come("/queue/a/b", "127.0.0.1:8000", scheme="http", **forwarded)
    assert inside.base == "https://fal.example.com/queue"
    assert outside.base == "http://127.0.0.1:8000/queue"


def test_a_label_means_nothing_in_the_name_that_the_operator_gave() -> None:
    assert come("/fal-ai/flux/dev", "queue.example.com").area is Area.QUEUE
    assert come("/fal-ai/flux/dev", "queue.example.com", public_url="https://queue.example.com:8443/x").area is Area.RUN


@pytest.mark.parametrize(
    ("forwarded", "base"),
    [
        ({"x_forwarded_prefix": "/flux"}, "http://ai.example.com/flux/queue"),
        ({"x_forwarded_prefix": "/a/b/"}, "http://ai.example.com/a/b/queue"),
        ({"x_forwarded_prefix": "//evil.test"}, "http://ai.example.com/queue"),
        ({"x_forwarded_prefix": "/a b"}, "http://ai.example.com/queue"),
        ({"x_forwarded_proto": "https", "x_forwarded_port": "8443"}, "https://ai.example.com:8443/queue"),
        ({"x_forwarded_proto": "https", "x_forwarded_port": "443"}, "https://ai.example.com/queue"),
        ({"x_forwarded_port": "80"}, "http://ai.example.com/queue"),
        ({"x_forwarded_port": "99999999"}, "http://ai.example.com/queue"),
        ({"x_forwarded_host": "b.example:81", "x_forwarded_port": "8443"}, "http://b.example:81/queue"),
        ({"forwarded": 'for="[2001:db8::1]";proto=https;host=c.example'}, "https://c.example/queue"),
        ({"forwarded": 'Host="d.example:8443" ; Proto=https, for=10.0.0.1;host=inner'}, "https://d.example:8443/queue"),
        ({"forwarded": "host=c.example", "x_forwarded_host": "e.example"}, "http://e.example/queue"),
    ],
)
def test_what_a_proxy_on_this_machine_says(forwarded: dict[str, str], base: str) -> None:
    near = come("/queue/a/b", "ai.example.com", scheme="http", client="127.0.0.1", plain_port=8000, **forwarded)
    assert (near.base, near.files) == (base, base.removesuffix("/queue"))
    far = come("/queue/a/b", "ai.example.com", scheme="http", **forwarded)
    assert far.base == "http://ai.example.com/queue"


@pytest.mark.parametrize(
    ("host", "client", "public_url", "files"),
    [
        ("queue.fal.run", "203.0.113.9", None, "http://127.0.0.1:8000"),
        ("queue.fal.run", "203.0.113.9", "https://pub.example", "https://pub.example"),
        ("localhost:8443", "127.0.0.1", None, "http://localhost:8000"),
        ("127.0.0.1:8443", "127.0.0.1", None, "http://127.0.0.1:8000"),
        ("[::1]:8443", "::1", None, "http://[::1]:8000"),
        ("ai.example.com", "127.0.0.1", None, "https://ai.example.com"),
        ("gpu.local:8443", "203.0.113.9", None, "https://gpu.local:8443"),
        ("localhost:8443", "203.0.113.9", None, "https://localhost:8443"),
    ],
)
def test_files_have_an_address_that_others_can_open(host: str, client: str, public_url: str | None, files: str) -> None:
    target = come("/fal-ai/flux/dev", host, client=client, public_url=public_url, plain_port=8000)
    assert target.files == files


def test_a_page_gets_no_plain_addresses() -> None:
    page = {"origin": "https://localhost:3000"}
    assert come("/a/b", "localhost:8443", client="::1", plain_port=8000, **page).files == "https://localhost:8443"


def test_the_proxy_dispatches_by_target_and_keeps_its_query() -> None:
    target = proxied("https://queue.fal.run/fal-ai/flux/dev?fal_webhook=https%3A%2F%2Fx.test%2Fh")
    assert (target.area, target.path) == (Area.QUEUE, "/fal-ai/flux/dev")
    assert target.query == b"fal_webhook=https%3A%2F%2Fx.test%2Fh"
    assert target.base == f"https://{OWN}/queue"
    assert proxied("https://fal.run/fal-ai/flux/dev/").area is Area.RUN
    assert proxied("https://rest.fal.ai/tokens/").path == "/tokens"
    assert proxied("https://rest.alpha.fal.ai/tokens/").area is Area.REST


@pytest.mark.parametrize("path", ["/api/fal/proxy", "/api/fal/proxy/", "/api/fal/proxy/x/y", "/fal/proxy"])
def test_all_proxy_paths(path: str) -> None:
    assert come(path, method="PUT", x_fal_target_url="https://queue.fal.run/a/b/requests/1/cancel").area is Area.QUEUE


@pytest.mark.parametrize(
    "target",
    [
        "",
        "https://example.com/",
        "http://queue.fal.run.evil.test/",
        "https://evil.test/?https://fal.run/",
        "https://fal.run@evil.test/a/b",
        "https://user@fal.run/a/b",
        "https://fal.run:9000/a/b",
        "ftp://fal.run/a/b",
        "fal.run/a/b",
        "https://[::1/a",
        "https://fal.run:bad/a",
    ],
)
def test_the_proxy_refuses_every_other_target(target: str) -> None:
    with pytest.raises(PlainError) as caught:
        proxied(target)
    assert caught.value.status == 400


def test_the_proxy_has_four_methods() -> None:
    with pytest.raises(PlainError) as caught:
        come("/api/fal/proxy", method="DELETE", x_fal_target_url="https://fal.run/a/b")
    assert caught.value.status == 405
    assert "PUT" in caught.value.headers["allow"]


def test_a_target_inside_the_proxy_does_not_reach_our_own_pages() -> None:
    assert proxied("https://fal.run/health").area is Area.RUN
    assert proxied("https://fal.run/api/fal/proxy").area is Area.RUN


@pytest.mark.parametrize("host", ["", "a b", "evil/path", "x\ny", "a:b:c", "http://x", "x:123456"])
def test_a_broken_host_header_is_refused_or_replaced(host: str) -> None:
    if host:
        with pytest.raises(PlainError) as caught:
            come("/queue/a/b", host)
        assert caught.value.status == 400
    else:
        assert come("/queue/a/b", host, scheme="http").base == "http://127.0.0.1:8000/queue"


def test_an_encoded_slash_separates_nothing() -> None:
    assert come("/queue/fal-ai%2Fflux/dev").path == "/fal-ai%2Fflux/dev"
    assert come("/queue/fal%2Dai/flux/dev").path == "/fal-ai/flux/dev"


def test_an_unusable_request_id_is_not_repeated_in_headers() -> None:
    target = come("/queue/fal-ai/flux/requests/%0d%0aset-cookie:x/status")
    assert target.follow_up is not None
    assert target.request_id != target.follow_up.request_id
    assert target.request_id.isascii()


@given(st.binary(max_size=60), st.sampled_from([OWN, "queue.fal.run", "localhost"]))
def test_any_path_arrives_somewhere(tail: bytes, host: str) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/" + tail,
        "query_string": b"",
        "headers": [(b"host", host.encode())],
        "client": None,
    }
    target = resolve_target(scope, Own())
    assert not target.path.endswith("/")
    assert target.request_id.isprintable()
