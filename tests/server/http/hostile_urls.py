"""Addresses by which a server has been talked into calling itself or its neighbours, in many spellings."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

PUBLIC = "127.0.0.2"
"""Stands for the public internet: the one address that the tests allow."""

INSIDE = (
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "198.18.0.1",
)

_FULLWIDTH = str.maketrans("0123456789", "０１２３４５６７８９")  # noqa: RUF001 - that is the point
_CIRCLED = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")


def _spellings(address: str) -> Iterator[str]:
    """One IPv4 address as host names that some resolver or parser takes for it."""
    number = int(ipaddress.IPv4Address(address))
    a, b, c, d = (int(part) for part in address.split("."))
    high, low = number >> 16, number & 0xFFFF
    yield address
    yield f"{address}."
    yield str(number)
    yield hex(number)
    yield f"0{number:o}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a:#x}.{b}.0{c:o}.{d}"
    yield f"{a}.{b}.{low}"
    yield f"{a}.{number & 0xFFFFFF}"
    yield address.replace(".", "%2e")
    yield address.replace(".", "。")
    yield address.translate(_FULLWIDTH)
    yield address.translate(_CIRCLED)
    yield f"[::ffff:{address}]"
    yield f"[0:0:0:0:0:ffff:{high:x}:{low:x}]"
    yield f"[::{address}]"
    yield f"[64:ff9b::{address}]"
    yield f"[64:ff9b:1::{high:x}:{low:x}]"
    yield f"[2002:{high:x}:{low:x}::1]"
    yield f"[2001:0:4136:e378:8000:63bf:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}]"
    yield f"[::ffff:0:{high:x}:{low:x}]"
    yield f"[fe80::5efe:{high:x}:{low:x}]"
    yield f"{address}.nip.test"


def hostile_urls(port: int) -> list[str]:
    """URLs that must lead nowhere but to PUBLIC; the sentinel listens at `port` of every address of this machine."""
    urls = [f"http://{host}:{port}/" for address in INSIDE for host in _spellings(address)]
    urls += [f"https://{host}:{port}/" for address in INSIDE[:2] for host in _spellings(address)]
    inside = f"127.0.0.1:{port}"
    for host in (
        "localhost", "LOCALHOST", "localhost.", "a.localhost", "ip6-localhost", "localhost.localdomain",
        "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "[fe80::1%25lo]", "[fc00::1]", "[fec0::1]", "[ff02::1]",
        "[2001:db8::1]", "[3fff::1]", "[100::1]", "0", "127.1", "0x7f.1", "017700000001", "00127.0.0.1", "127.0.0.1%00",
        "127.0.0.1%09", "127.0.0.1%20", "rebind.test", "mixed.test", "inside.test", "inside6.test", "xn--n28h.test",
        "xn--\u00fc", "metadata.google.internal", "%6c%6f%63%61%6c%68%6f%73%74", "ⓛocalhost", "①②⑦.⓪.⓪.①",
    ):  # fmt: skip
        urls.append(f"http://{host}:{port}/")
    urls += [
        f"http://user@{inside}/", f"http://user:pass@{inside}/", f"http://public.test@{inside}/",
        f"http://public.test:80@{inside}/", f"http://public.test\\@{inside}/", f"http://{inside}\\@public.test/",
        f"http://public.test#@{inside}/", f"http://{inside}#@public.test/", f"http://public.test?@{inside}/",
        f"http://public.test;@{inside}/", f"http://public.test%2f@{inside}/", f"http://public.test%23@{inside}/",
        f"http:{inside}", f"http:/{inside}", f"http:///{inside}", f"http:////{inside}", f"http:\\\\{inside}/",
        f"//{inside}/", f"\\\\{inside}\\", f"http:/\\{inside}/", f"http://\t{inside}/", f"ht\ntp://{inside}/",
        f" http://{inside}/", f"http://127.0.0\t.1:{port}/", f"http://127.0.0.1:{port}\r\nHost: x/", f"http://{inside}\x00/",
        f"HTTP://{inside}/", f"hTtP://{inside}/", f"http://{inside}:80/", f"http://127.0.0.1:0{port}/",
        f"http://127.0.0.1:{port + 65536}/", "http://127.0.0.1:-1/", f"http://[{inside}]/", f"http://[::1]{inside}/",
        f"http://{inside}@public.test@{inside}/", f"url:http://{inside}/", f"view-source:http://{inside}/",
        "file:///etc/passwd", "file://localhost/etc/passwd", f"gopher://{inside}/_GET", f"ftp://{inside}/x",
        f"dict://{inside}/d", f"ldap://{inside}/", f"tftp://{inside}/x", f"ws://{inside}/", f"jar:http://{inside}/!/x",
        f"unix://{inside}/", f"http+unix://{inside}/", "/etc/passwd", "../../etc/passwd", "javascript:alert(1)", "",
        "http://", "http://.", "http://..", "http:// /", "https://public.test:22/", f"blob:http://{inside}/1",
    ]  # fmt: skip
    return urls


class Resolver:
    """Names as an attacker would have them answered, and number forms as this machine's own resolver reads them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        name = (host.decode() if isinstance(host, bytes) else host).lower().rstrip(".")
        self.asked.append(name)
        addresses = self._answers(name)
        if addresses is None:
            return self._real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        families = (socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses)
        entries = zip(families, addresses, strict=True)
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in entries]

    def _answers(self, name: str) -> list[str] | None:
        if name == "rebind.test":  # the classic: harmless when it is checked, inside when it is called
            return [PUBLIC] if self.asked.count(name) % 2 else ["127.0.0.1"]
        if name.endswith(".nip.test"):
            return [name.removesuffix(".nip.test")]
        if name in ("public.test", "mixed.test"):
            return [PUBLIC] if name == "public.test" else ["127.0.0.1", "::1"]
        if name in ("inside.test", "xn--n28h.test", "metadata.google.internal") or "localhost" in name:
            return ["127.0.0.1"]
        return ["::1"] if name == "inside6.test" else None
