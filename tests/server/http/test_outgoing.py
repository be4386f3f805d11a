"""Addresses that may be reached, and the transport that goes only there."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http import outgoing
from server.http.outgoing import (
    ForbiddenAddressError,
    VettedTransport,
    is_allowed,
    is_host_name,
    parse_networks,
    refuse_at_sight,
    split_credentials,
)

FORBIDDEN = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_inside_are_forbidden_in_every_spelling(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), ())


def test_the_operator_may_allow_more() -> None:
    networks = parse_networks(["10.0.0.0/8", "fd00::/8"])
    assert is_allowed(ipaddress.ip_address("10.9.9.9"), networks)
    assert is_allowed(ipaddress.ip_address("fd00::1"), networks)
    assert not is_allowed(ipaddress.ip_address("127.0.0.1"), networks)


def fetch(url: str, *cidrs: str) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=VettedTransport(parse_networks(cidrs)), trust_env=False) as client:
            return await client.get(url)

    return asyncio.run(go())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_no_spelling_of_this_machine_is_called(host: str) -> None:
    with pytest.raises((ForbiddenAddressError, httpx.ConnectError)):
        fetch(f"http://{host}:9/")


def test_a_name_that_changes_its_answer_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves to a public address at the check; the connection goes to that address, not to a new look-up."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", port))
        ]

    sent: list[tuple[str, str]] = []

    async def inner(self: Any, request: httpx.Request) -> httpx.Response:
        sent.append((request.url.host, request.headers["host"]))
        assert request.extensions["sni_hostname"] == "rebind.test"
        return httpx.Response(200)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", inner)
    assert fetch("https://rebind.test/x").status_code == 200
    assert (asked, sent) == (["rebind.test"], [("93.184.215.14", "rebind.test")])


def test_a_name_server_that_hangs_takes_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        answered.wait(20)
        raise socket.gaierror("no such name")

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with httpx.AsyncClient(transport=VettedTransport()) as client:
            calls = [asyncio.create_task(client.get("http://slow.test/")) for _ in range(40)]
            assert await asyncio.to_thread(lambda: "a submit") == "a submit"
            assert not any(call.done() for call in calls)
            answered.set()
            assert {type(error) for error in await asyncio.gather(*calls, return_exceptions=True)} == {
                httpx.ConnectError
            }

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.0.0.7",
        "localhost",
        "x.localhost.",
        "[::1]",
        "0x7f.1",
        "2130706433",
        "[::ffff:10.0.0.1]",
        "inside",
    ],
)
def test_what_is_known_to_be_inside_is_refused_at_sight(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\n10.0.0.9\tinside other # a machine\nnonsense inside\n")
    monkeypatch.setattr(outgoing, "HOSTS_FILE", hosts)
    outgoing._hosts.cache_clear()
    with pytest.raises(ForbiddenAddressError, match="--allow-private-cidr"):
        refuse_at_sight(f"http://{host}:8080/hook")
    refuse_at_sight(
        f"http://{host}:8080/hook", parse_networks(["127.0.0.0/8", "10.0.0.0/8", "::1/128", "::ffff:0:0/96"])
    )
    outgoing._hosts.cache_clear()


def test_a_name_is_not_looked_up_to_refuse_it_at_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: object, *_: Any, flags: int = 0, **__: Any) -> Any:
        assert flags & socket.AI_NUMERICHOST
        return real(host, None, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for url in ("https://public.test/x", "http://u:p@93.184.215.14/x", "http://", "http://xn--a/", "\udc80"):
        refuse_at_sight(url)
    for url in ("http://public@10.0.0.1/", "http://93.184.215.14:22/"):
        with pytest.raises(ForbiddenAddressError):
            refuse_at_sight(url)


@pytest.mark.parametrize(
    ("host", "may"),
    [("example.com", True), ("a..b", False), (".example.com", False), ("xn--a", False), ("b" * 64, False)],
)
def test_what_cannot_be_a_host_name_is_known_without_asking(host: str, may: bool) -> None:
    assert is_host_name(host) is may


def test_a_name_and_password_go_into_a_header_and_not_into_the_address() -> None:
    address, credentials = split_credentials("https://ann:s%40fe@example.com:8443/x?y=1")
    assert str(address) == "https://example.com:8443/x?y=1"
    assert credentials is not None
    asked = next(credentials.auth_flow(httpx.Request("GET", address)))
    assert asked.headers["authorization"] == "Basic YW5uOnNAZmU="
    assert split_credentials("https://example.com/") == (httpx.URL("https://example.com/"), None)


def test_a_stop_does_not_wait_for_a_name_server() -> None:
    may_answer, has_answered = threading.Event(), threading.Event()

    def hang() -> None:
        may_answer.wait(10)
        has_answered.set()

    transport = VettedTransport()
    transport._resolver.submit(hang)
    try:
        asyncio.run(transport.aclose())
        assert not has_answered.is_set()
    finally:
        may_answer.set()
