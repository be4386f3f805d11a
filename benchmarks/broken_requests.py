"""Requests as no client should send them: right ones, broken in one to three places by a dice with a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import msgpack

Place = tuple[str, str, bytes]
"""Method, path, body."""
Break = Callable[[random.Random, bytes], bytes]

_ID = "00000000-0000-4000-8000-000000000000"
_SMALL = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}

_FORM = b"\r\n".join(
    (
        b"--cut",
        b'Content-Disposition: form-data; name="prompt"',
        b"",
        b"x",
        b"--cut",
        b'Content-Disposition: form-data; name="image"; filename="a.png"',
        b"Content-Type: image/png",
        b"",
        b"\x89PNG\r\n\x1a\nnot really",
        b"--cut--",
        b"",
    )
)
_PLACES: list[Place] = [
    ("GET", f"/queue/fal-ai/flux/requests/{_ID}/status?logs=1", b""),
    ("GET", f"/queue/fal-ai/flux/requests/{_ID}/status/stream", b""),
    ("GET", f"/queue/fal-ai/flux/requests/{_ID}", b""),
    ("PUT", f"/queue/fal-ai/flux/requests/{_ID}/cancel", b""),
    ("POST", "/queue/fal-ai/flux/dev?fal_webhook=https://example.com/hook", json.dumps(_SMALL).encode()),
    ("POST", "/run/fal-ai/flux/schnell", json.dumps(_SMALL).encode()),
    ("POST", "/run/fal-ai/flux/dev/stream", json.dumps(_SMALL).encode()),
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
    ("GET", "/v1/models?limit=3&category=text-to-image", b""),
    ("GET", "/v1/models/fal-ai/flux/dev", b""),
    ("GET", "/api/models?keywords=flux&page=1&limit=5", b""),
    ("GET", "/api/models/owner/name?expand=siblings", b""),
    ("GET", "/models/fal-ai/flux/dev/llms.txt", b""),
    ("GET", "/models/fal-ai/flux/dev/thumbnail.svg", b""),
    ("GET", "/v1/models/pricing?endpoint_id=fal-ai/flux/dev", b""),
    (
        "POST",
        "/v1/models/pricing/estimate",
        b'{"estimate_type":"unit_price","endpoints":{"fal-ai/flux/dev":{"unit_quantity":2}}}',
    ),
    ("GET", "/v1/models/usage?start=2026-11-01&end=2026-11-27&timeframe=day&endpoint_id=fal-ai/flux/dev&limit=5", b""),
    ("GET", "/v1/models/analytics?start=2026-11-26T00:00:00Z&timeframe=hour&expand=time_series,request_count", b""),
    (
        "GET",
        "/v1/models/requests/by-endpoint?endpoint_id=fal-ai/flux/dev&q=circle&tag=a=b&status=success&expand=payloads",
        b"",
    ),
    ("DELETE", f"/v1/models/requests/{_ID}/payloads", b""),
    ("GET", "/v1/jobs?status=queued&tag=a=b&text=fox&limit=5", b""),
    ("GET", f"/v1/jobs/{_ID}", b""),
    ("POST", "/v1/jobs/cancel", b'{"ids":["x"],"tags":{"a":"b"}}'),
    ("POST", f"/v1/jobs/{_ID}/prioritise", b""),
    ("POST", f"/v1/jobs/{_ID}/requeue", b""),
    ("PUT", "/v1/pauses/model/another", b""),
    ("DELETE", "/v1/pauses/key/nobody", b""),
    ("GET", "/v1/pauses", b""),
    ("POST", "/v1/keys", b'{"alias":"a","scopes":["run"],"limits":{"running":2},"budgets":["5mp/day"]}'),
    ("PATCH", f"/v1/keys/{_ID}", b'{"alias":"b","limits":{"waiting":2}}'),
    ("DELETE", f"/v1/keys/{_ID}", b""),
    ("GET", "/v1/keys?include_revoked=true&limit=2", b""),
    ("GET", "/v1/nodes", b""),
    ("DELETE", "/v1/drains/nobody", b""),
    ("GET", "/v1/clients", b""),
    (
        "POST",
        "/mcp",
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
        b'"clientInfo":{"name":"x","version":"1"}}}',
    ),
    (
        "POST",
        "/mcp",
        b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"generate_image","arguments":{"prompt":"x"}}}',
    ),
    ("POST", "/rest/storage/upload/initiate-multipart", b'{"file_name":"a.png","content_type":"image/png"}'),
]


def broken_requests(number: int, seed: int, host: str, key: str = "") -> Iterator[bytes]:
    """`number` requests; the same seed gives the same ones. Args: key: that the whole ones bring."""
    dice = random.Random(seed)
    whole = _whole(host, key)
    for _ in range(number):
        data = dice.choice(whole)
        for _ in range(dice.randint(1, 3)):
            data = dice.choice(_BREAKS)(dice, data)
        yield data


def _whole(host: str, key: str) -> list[bytes]:
    """Right requests, one of every kind."""
    body = json.dumps(_SMALL).encode()
    allowed = f"Authorization: Key {key}\r\n" if key else ""
    socket = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    plain = [_request(host, *place, allowed) for place in _PLACES]
    chunked = _request(host, "POST", "/queue/fal-ai/flux/dev", b"", f"{allowed}Transfer-Encoding: chunked\r\n") + (
        f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    )
    socket = allowed + socket
    realtime = [
        _request(host, "GET", "/run/fal-ai/flux/dev/realtime", b"", socket) + _frame(kind, message)
        for kind, message in ((1, body), (2, msgpack.packb(_SMALL)), (9, b"ping"), (8, b""))
    ]
    form = _request(host, "POST", "/v1/images/edits", _FORM, allowed).replace(
        b"application/json", b"multipart/form-data; boundary=cut"
    )
    proxied = _request(
        host,
        "GET",
        "/api/fal/proxy",
        b"",
        f"{allowed}X-Fal-Target-Url: https://queue.fal.run/fal-ai/flux/requests/{_ID}/status\r\n",
    )
    return [*plain, chunked, *realtime, form, proxied]


def _frame(kind: int, message: bytes) -> bytes:
    """A WebSocket message of a client, masked with zeros (RFC 6455, section 5.2)."""
    length = bytes([0x80 | len(message)]) if len(message) < 126 else b"\xfe" + len(message).to_bytes(2, "big")
    return bytes([0x80 | kind]) + length + bytes(4) + message


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
