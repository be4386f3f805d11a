"""Calls to addresses that users name: only to the public internet, unless the operator allows more.

The name is resolved once, every address is checked, and the connection goes to the address that was checked, so a
name that changes its answer in between gains nothing.
"""

from __future__ import annotations

import asyncio

# The codec of host names. Should its first use find no descriptor free, "unknown encoding" would stand for good.
import encodings.idna  # noqa: F401
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
RESOLVING_AT_ONCE = 16
WEB_PORTS = (80, 443)
"""Of the privileged ports, those at which web servers answer; the others belong to services that might misread HTTP."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that has ever been given out as public IPv6."""

_SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(cidr)
    for cidr in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
"""Private, shared, local, documentation, benchmarks, relays: RFC 6890 and its successors."""

HOSTS_FILE = Path("/etc/hosts")


class ForbiddenAddressError(Exception):
    """The host lies where this server may not reach."""


def is_host_name(host: str) -> bool:
    """Whether a name server could be asked for it: no empty or overlong labels, no broken punycode."""
    try:
        httpx.URL(scheme="http", host=host).host.encode("idna")
    except (UnicodeError, httpx.InvalidURL):
        return False
    return True


def parse_networks(cidrs: Iterable[str]) -> tuple[Network, ...]:
    """Networks from their CIDR texts."""
    return tuple(ipaddress.ip_network(cidr) for cidr in cidrs)


def is_allowed(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether a connection to it may be made: it is in an allowed network, or public in every reading."""
    if any(address in network for network in allowed):
        return True
    return all(_is_public(reading) for reading in _readings(address))


def refuse_at_sight(url: str, allowed: Iterable[Network] = ()) -> None:
    """Refuse what can be known to be forbidden without asking a name server: literal addresses in every spelling,
    localhost, names of the hosts file, ports. Other names are vetted when they are called.

    Raises: ForbiddenAddressError. What is no address at all is let pass."""
    try:
        parts = httpx.URL(url)
        if known := _known_addresses(parts.host):
            _vetted(parts, known, tuple(allowed))
    except (httpx.InvalidURL, ValueError):
        return


def split_credentials(url: str) -> tuple[httpx.URL, httpx.BasicAuth | None]:
    """The address without its `user:password@`, and what to send instead (RFC 7617). Raises: httpx.InvalidURL."""
    parts = httpx.URL(url)
    if not parts.userinfo:
        return parts, None
    return parts.copy_with(username="", password=""), httpx.BasicAuth(parts.username, parts.password)


class VettedTransport(httpx.AsyncBaseTransport):
    """Sends requests to allowed addresses only; environment proxies are not used.

    Args: allowed: networks beside the public internet.
    """

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = tuple(allowed)
        # Threads of our own: a name server that hangs must not take those in which submits reach the store.
        self._resolver = ThreadPoolExecutor(RESOLVING_AT_ONCE, "resolve")
        # No kept connections: they are found again by address, and would serve another name at the same address.
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises: ForbiddenAddressError; httpx.ConnectError if the name is unknown, InvalidURL if it cannot be one."""
        host = request.url.host
        if request.url.userinfo:
            raise ForbiddenAddressError("an address with a user name or password is not called")
        address = _vetted(request.url, await self._resolve(host), self._allowed)
        # Another request, since a redirect is read relative to the first one's name. The Host header was set from the
        # name; TLS checks the certificate against it, too.
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=str(address)),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(pinned)

    async def aclose(self) -> None:
        self._resolver.shutdown(wait=False, cancel_futures=True)
        await self._inner.aclose()

    async def _resolve(self, host: str) -> list[Address]:
        try:
            resolve = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
            found = await asyncio.get_running_loop().run_in_executor(self._resolver, resolve)
        except UnicodeError as exc:
            raise httpx.InvalidURL(f"{host[:100]} is no host name") from exc
        except OSError as exc:
            raise httpx.ConnectError(f"{host} cannot be resolved") from exc
        return _addresses(found)


def _vetted(url: httpx.URL, addresses: Sequence[Address], allowed: Sequence[Network]) -> Address:
    """The first of a host's addresses that may be called. Raises: ForbiddenAddressError."""
    for address in addresses:
        if any(address in network for network in allowed):
            return address
        if is_allowed(address, ()):
            if url.port is not None:  # the usual one of its scheme
                _check_port(url.port)
            return address
    raise ForbiddenAddressError(f"{url.host} is not on the public internet; --allow-private-cidr allows more")


def _known_addresses(host: str) -> list[Address]:
    """Of a name, as far as this machine knows them by itself."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return [ipaddress.ip_address("127.0.0.1")]
    if found := _hosts().get(name):
        return found
    try:
        # Without a look-up, and with the resolver's own idea of what is a number: 0x7f.1 is one.
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, UnicodeError):
        return []


@cache
def _hosts() -> dict[str, list[Address]]:
    """The hosts file, as it was when it was first needed."""
    found: dict[str, list[Address]] = {}
    try:
        lines = HOSTS_FILE.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for words in (line.partition("#")[0].split() for line in lines):
        for name in words[1:]:
            with suppress(ValueError):
                found.setdefault(name.lower(), []).append(ipaddress.ip_address(words[0].partition("%")[0]))
    return found


def _addresses(found: Iterable[tuple[object, object, object, object, tuple[object, ...]]]) -> list[Address]:
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _check_port(port: int) -> None:
    if port < 1024 and port not in WEB_PORTS:
        raise ForbiddenAddressError(f"port {port} is not one at which web servers answer")


def _is_public(address: Address) -> bool:
    """By our own tables as well as by Python's, which were wrong in some releases."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return False
    is_special = any(address in network for network in _SPECIAL if network.version == address.version)
    return not is_special and (address in _NAT64 or address.is_global) and not address.is_multicast


def _readings(address: Address) -> list[Address]:
    """The address and every IPv4 address that it may stand for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour, address.teredo[1] if address.teredo else None]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    carried: list[Address] = [reading for reading in inner if reading is not None]
    # A mapped address is not "global" itself; what counts is what it carries.
    return carried if address.ipv4_mapped else [address, *carried]
