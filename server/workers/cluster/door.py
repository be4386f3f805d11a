"""Where workers on other machines connect: TLS by an authority of this start's own, and a token that admits once."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import secrets
import socket
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from server.http.authority import make_authority, make_served
from server.workers.cluster.keepalive import notice_a_silent_peer

logger = logging.getLogger("fluxserve.cluster")

GREETING_S = 10.0
MAX_GREETING = 1024
MAX_STRANGERS = 64
"""Connections that have not yet shown a token; one more is closed at once."""
BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Visit:
    """A worker that has come. Args: pid, host: of its process, and where that runs."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int
    host: str


class Door:
    """Listens from `open` to `close`. Whoever comes without a token that is waited for is sent away.

    Args: host: an address of this machine or a name of it, as the workers' machines reach it; or one that is published
        for this machine and a fixed `port` (a container's, a translated one), and then all of its own are listened on.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self.host = host
        self.port = port
        self.ca = ""
        self._server: asyncio.Server | None = None
        self._expected: dict[bytes, asyncio.Future[Visit]] = {}
        self._strangers = 0

    async def open(self) -> None:
        """Raises: OSError when it cannot listen there."""
        context = self._context()
        listened = self.host if await asyncio.to_thread(_is_of_this_machine, self.host) else None
        if listened is None:
            if not self.port:
                raise OSError(f"{self.host} is no address of this machine: a published one needs a fixed port")
            logger.info("%s is no address of this machine: workers are awaited on all of its own", self.host)
        self._server = await asyncio.start_server(
            self._greet, listened, self.port, ssl=context, ssl_handshake_timeout=GREETING_S, limit=BUFFER
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Listen no more; connections that were admitted go on."""
        if self._server is not None:
            self._server.close()

    def expect(self) -> tuple[str, asyncio.Future[Visit]]:
        """A new token, and who comes with it; see `send_away`."""
        token = secrets.token_urlsafe(32)
        visit: asyncio.Future[Visit] = asyncio.get_running_loop().create_future()
        key = _key_of(token)
        self._expected[key] = visit
        visit.add_done_callback(lambda _: self._expected.pop(key, None))
        return token, visit

    def send_away(self, visit: asyncio.Future[Visit]) -> None:
        """Nobody waits for this one any more, whether it has come or not."""
        if not visit.cancel() and not visit.cancelled():
            visit.result().writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._strangers += 1
        is_admitted = False
        try:
            is_admitted = self._strangers <= MAX_STRANGERS and await self._admits(reader, writer)
        finally:
            self._strangers -= 1
            if not is_admitted:
                writer.close()

    async def _admits(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            async with asyncio.timeout(GREETING_S):
                line = await reader.readline()
            hello = json.loads(line) if len(line) <= MAX_GREETING else {}
            visit = self._expected.get(_key_of(str(hello["token"])))
            if visit is not None and not visit.done():
                notice_a_silent_peer(writer)
                visit.set_result(Visit(reader, writer, int(hello["pid"]), str(hello["host"])[:MAX_GREETING]))
                return True
            logger.warning("a connection from %s had no valid token", writer.get_extra_info("peername")[0])
        except (OSError, ValueError, KeyError, TypeError, TimeoutError) as exc:
            logger.warning("a connection that was no worker's: %s", type(exc).__name__)
        return False

    def _context(self) -> ssl.SSLContext:
        """Nothing of it stays on disk, and nothing of it holds after this start."""
        now = datetime.now(UTC)
        authority = make_authority(now)
        served = make_served(authority, [self.host], now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        pem = serialization.Encoding.PEM
        key = served.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with tempfile.NamedTemporaryFile() as file:
            file.write(key + served.certificate.public_bytes(pem))
            file.flush()
            context.load_cert_chain(Path(file.name))
        self.ca = authority.certificate.public_bytes(pem).decode()
        return context


def _is_of_this_machine(host: str) -> bool:
    """Raises: OSError for a name that means nothing here."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError as exc:
                if exc.errno == errno.EADDRNOTAVAIL:
                    continue
            return True
    return False


def _key_of(token: str) -> bytes:
    """Looked up by its hash, so that the time it takes tells nothing of a token."""
    return hashlib.sha256(token.encode()).digest()
