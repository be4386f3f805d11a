"""Requests as no client should send them: right ones, broken in one to three places by a dice with a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

Break = Callable[[random.Random, bytes], bytes]

_ID = "00000000-0000-4000-8000-000000000000"
_SMALL = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}


def broken_requests(number: int, seed: int, host: str) -> Iterator[bytes]:
    """`number` requests; the same seed gives the same ones."""
    dice = random.Random(seed)
    whole = _whole(host)
    for _ in range(number):
        data = dice.choice(whole)
        for _ in range(dice.randint(1, 3)):
            data = dice.choice(_BREAKS)(dice, data)
        yield data


def _whole(host: str) -> list[bytes]:
    """Right requests, one of every kind."""
    body = json.dumps(_SMALL).encode()
    places = [
        ("GET", f"/queue/fal-ai/flux/requests/{_ID}/status?logs=1", b""),
        ("GET", f"/queue/fal-ai/flux/requests/{_ID}/status/stream", b""),
        ("GET", f"/queue/fal-ai/flux/requests/{_ID}", b""),
        ("PUT", f"/queue/fal-ai/flux/requests/{_ID}/cancel", b""),
        ("POST", "/queue/fal-ai/flux/dev?fal_webhook=https://example.com/hook", body),
        ("POST", "/run/fal-ai/flux/schnell", body),
        ("POST", "/run/fal-ai/flux/dev/stream", body),
        ("POST", "/v1/images/generations", b'{"model":"fal-ai/flux/dev","prompt":"x","size":"64x64"}'),
        ("POST", "/rest/storage/upload/initiate", b'{"file_name":"a.png","content_type":"image/png"}'),
        ("POST", "/rest/tokens/", b'{"allowed_apps":["flux"],"token_expiration":60}'),
        ("POST", "/files/upload", b"bytes"),
        ("GET", f"/files/{'0' * 32}.png", b""),
        ("OPTIONS", "/run/fal-ai/flux/dev", b""),
        ("HEAD", "/health", b""),
        ("GET", "/metrics", b""),
        ("GET", "/api/openapi/queue/openapi.json?endpoint_id=fal-ai/flux/dev", b""),
        ("POST", "/mcp", b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'),
        ("CONNECT", "queue.fal.run:443", b""),
    ]
    socket = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    plain = [_request(host, *place) for place in places]
    chunked = _request(host, "POST", "/queue/fal-ai/flux/dev", b"", "Transfer-Encoding: chunked\r\n") + (
        f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    )
    realtime = _request(host, "GET", "/run/fal-ai/flux/dev/realtime", b"", socket) + b"\x81\x85\0\0\0\0hello"
    proxied = _request(
        host,
        "GET",
        "/api/fal/proxy",
        b"",
        f"X-Fal-Target-Url: https://queue.fal.run/fal-ai/flux/requests/{_ID}/status\r\n",
    )
    return [*plain, chunked, realtime, proxied]


def _request(host: str, method: str, path: str, body: bytes, headers: str = "") -> bytes:
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n".encode() + body


# Ways to break one


def _flip_bytes(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def _cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randint(1, len(data))]


def _double(dice: random.Random, data: bytes) -> bytes:
    begin = dice.randrange(len(data))
    end = dice.randrange(begin, len(data)) + 1
    return data[:end] + data[begin:end] * dice.randint(1, 50) + data[end:]


def _insert(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + dice.choice(_POISON) + data[place:]


def _header(dice: random.Random, data: bytes) -> bytes:
    head, gap, body = data.partition(b"\r\n")
    return head + gap + dice.choice(_HEADERS) + b"\r\n" + body


def _path(dice: random.Random, data: bytes) -> bytes:
    method, gap, rest = data.partition(b" ")
    return method + gap + dice.choice(_PATHS) + b" " + rest.partition(b" ")[2]


def _method(dice: random.Random, data: bytes) -> bytes:
    return dice.choice(_METHODS) + b" " + data.partition(b" ")[2]


def _json_body(dice: random.Random, data: bytes) -> bytes:
    """Another body, with the length that it has."""
    body = dice.choice(_BODIES)
    head = data.partition(b"\r\n\r\n")[0]
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


_POISON = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"%00",
    b"%",
    b"%zz",
    b"%c0%ae",
    b"..",
    b"//",
    b"\\",
    b'"',
    b"{",
    b"}",
    b"\x1b[31m",
    b" " * 3000,
    b"A" * 9000,
    b"0" * 400,
    b"-1",
    b"1e999",
    b"NaN",
    "é\u202e😀".encode(),
    b"\x16\x03\x01",
)
_HEADERS = (
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 5, 6",
    b"Content-Length: 0x10",
    b"Content-Length: 40000000",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: x",
    b"Host: evil.example",
    b"Host: a b",
    b"Host:",
    b"X-Forwarded-Host: \xff",
    b"X-Forwarded-Proto: gopher",
    b"X-Forwarded-For: 1.2.3.4, x",
    b"Expect: 100-continue",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Upgrade: h2c",
    b"Authorization: Key",
    b"Authorization: Basic \xff",
    b"Authorization: Key " + b"k" * 5000,
    b"Range: bytes=9-1,-,x",
    b"X-Fal-Request-Timeout: nan",
    b"X-Fal-Request-Timeout: -1e400",
    b"X-Fal-Queue-Priority: \xe9",
    b"X-Fal-Runner-Hint: " + b"h" * 5000,
    b"X-Fal-Object-Lifecycle-Preference: [",
    b'X-Fal-Object-Lifecycle-Preference: {"expiration_duration_seconds": 1e400}',
    b'X-Fal-Retry-Config: {"x":' + b"[" * 500,
    b"X-Fal-Target-Url: http://[",
    b"X-Fal-Target-Url: https://queue.fal.run\\@x",
    b"Cookie: " + b"c=1;" * 1000,
    b"X: " + b"y" * 70000,
    b"no colon here",
    b": no name",
    b"Content-Type: text/html; charset=\xff",
    b"Content-Encoding: gzip",
    b"If-None-Match: " + b'"' * 500,
    b"Accept: */*;q=\x80",
    b" folded: yes",
    b"Sec-WebSocket-Version: 99",
)
_PATHS = (
    b"*",
    b"http://example.com/",
    b"/" + b"a/" * 2000,
    b"/%00",
    b"/..%2f..%2fetc/passwd",
    b"/queue/%ff%fe/requests/%00/status",
    b"/queue//requests//",
    b"/files/%2e%2e/keys.json",
    b"/files/" + b"0" * 32 + b".png%00",
    b"/run/fal-ai/flux/dev?" + b"&=" * 3000,
    b"/queue/fal-ai/flux/dev?fal_webhook=http://%5b",
    b"/queue/fal-ai/flux/dev?fal_max_queue_length=99999999999",
    b"/queue/fal-ai/flux/dev?fal_webhook=" + b"h" * 5000,
    b"/files/upload/x.y.z",
    b"/files/upload/a/99999",
    b"/v1/models?limit=1e9",
    b"/v1/models?limit=-1",
    b"/api/openapi/queue/openapi.json",
    b"/openapi.json",
    b"/run/fal-ai/flux/dev/realtime?max_buffering=-1",
    b"/run/x?fal_jwt_token=eyJhbGciOiJub25lIn0.e30.",
    b"?",
    b"#",
    b"/\xc3\x28",
    b"//evil.example/%2f..",
    b"/rest/.well-known/jwks.json",
)
_METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"TRACE",
    b"OPTIONS",
    b"HEAD",
    b"CONNECT",
    b"PRI",
    b"get",
    b"\x80",
    b"G" * 300,
)
_BODIES = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"0",
    b"{",
    b"}" * 100,
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"prompt": null}',
    b'{"prompt": ""}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "x", "seed": 1e400}',
    b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "seed": -1}',
    b'{"prompt": "x", "num_images": 1e9}',
    b'{"prompt": "x", "image_size": {"width": -1, "height": 0}}',
    b'{"prompt": "x", "image_size": {"width": 1e18, "height": 64}}',
    b'{"prompt": "x", "num_inference_steps": NaN}',
    b'{"prompt": "x", "guidance_scale": Infinity}',
    b'{"prompt": "x", "prompt": 1}',
    b'{"prompt": ["x"]}',
    b'{"prompt": {"x": "y"}}',
    b'{"prompt": "' + b"x" * 300_000 + b'"}',
    b'{"\\u0000": 1, "prompt": "x"}',
    b'{"prompt": "x", "image_url": "file:///etc/passwd"}',
    b'{"prompt": "x", "image_url": "http://[::1"}',
    b'{"prompt": "x", "image_url": "data:image/png;base64,AAAA"}',
    b'{"prompt": "x", "loras": [{"path": "../../etc", "scale": "x"}]}',
    b'{"prompt": "x", "output_format": "../x"}',
    b'{"prompt": "x", "sync_mode": "maybe"}',
    b'\xef\xbb\xbf{"prompt": "x"}',
    b'{"parts": [{"partNumber": "1", "etag": null}]}',
    b'{"allowed_apps": [[]], "token_expiration": "x"}',
    b"\0" * 1000,
)

_BREAKS: tuple[Break, ...] = (_flip_bytes, _cut, _double, _insert, _header, _path, _method, _json_body)
