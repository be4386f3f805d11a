"""CONNECT on the plain port: a proxy that leads fal's names into this server, and nowhere else.

Python's fal client has no setting for its REST and CDN hosts, but it asks the proxy that HTTPS_PROXY names for a way to
them. TLS inside a tunnel ends here, in the protocol of our own TLS listener: no name is resolved, no connection is
opened, and the peer that the server sees is still the caller itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, cast

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.http.joined_writes import Http, JoinedWrites

logger = logging.getLogger("fluxserve.tunnels")

HEAD_BYTES = 8192
HEAD_S = 10.0
"""A CONNECT request must have come whole by then."""
HANDSHAKE_S = 10.0
"""The same for the TLS handshake inside a tunnel."""
FIRST_REQUEST_S = 30.0
"""And for the first request after it; between later ones, the keep-alive time of the TLS listener counts."""
GOODBYE_S = 2.0
"""How long a closing tunnel waits for its caller to end TLS, too: a stop waits as long."""
MAX_TUNNELS = 1000

_METHOD = b"CONNECT "
_HEAD_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(r"CONNECT (\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):([0-9]{1,5}) HTTP/1\.[01]")


class RefusedTunnelError(Exception):
    """No tunnel for this CONNECT; `status` and the message are the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tunnels:
    """The tunnels of one process: they end in the TLS server that `lead_to` names, and without one there are none.

    Args: ends: the names to which a tunnel may lead, and the ports of each.
    """

    def __init__(self, ends: Mapping[str, Collection[int]]) -> None:
        self._ends = ends
        self._server: uvicorn.Server | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.Transport] = set()

    def lead_to(self, server: uvicorn.Server) -> None:
        """Let tunnels end in this TLS server, which has been started."""
        self._server = server

    def plain_protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn shall speak on the plain port: HTTP, and CONNECT to these tunnels."""
        return cast("type[asyncio.Protocol]", partial(PlainHttp, tunnels=self))

    def check(self, head: str) -> None:
        """Whether the head of a CONNECT request may pass. Raises: RefusedTunnelError."""
        line = _REQUEST_LINE.fullmatch(head.partition("\r\n")[0])
        if line is None:
            raise RefusedTunnelError(400, "A CONNECT request begins with CONNECT HOST:PORT HTTP/1.1")
        host, port = line[1].lower(), int(line[2])
        if port not in self._ends.get(host.strip("[]"), ()):
            names = ", ".join(name for name, ports in self._ends.items() if 443 in ports)
            raise RefusedTunnelError(403, f"This proxy leads to this server only: port 443 of {names}")
        if self._server is None or self._server.should_exit:
            raise RefusedTunnelError(503, "TLS is not served here: start with a --tls-port, or wait until it is up")
        self._open = {transport for transport in self._open if not transport.is_closing()}
        if len(self._open) >= MAX_TUNNELS:
            raise RefusedTunnelError(503, f"{MAX_TUNNELS} tunnels are open already")

    def open(self, transport: asyncio.Transport) -> None:
        """Say yes and begin TLS on this connection; `check` has let it pass."""
        assert self._server is not None
        # Not a byte of TLS may reach the protocol that has read the CONNECT.
        transport.pause_reading()
        transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._open.add(transport)
        task = asyncio.create_task(self._lead(transport, self._server), name="tunnel")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def close(self) -> None:
        """End the tunnels through which no request has come yet; the others belong to the TLS server."""
        for task in self._opening:
            task.cancel()

    async def _lead(self, transport: asyncio.Transport, server: uvicorn.Server) -> None:
        first = _FirstBytes()
        has_arrived = False
        try:
            inside = await _start_tls(transport, first, server)
            async with asyncio.timeout(FIRST_REQUEST_S):
                await first.have_come.wait()
            has_arrived = bool(first.data) and not server.should_exit
            if has_arrived:
                _hand_over(inside, first.data, server)
        except OSError as exc:  # TLS errors and timeouts are such
            logger.debug("a tunnel was not used: %s", exc)
        finally:
            if not has_arrived:
                transport.abort()


class PlainHttp(Http):
    """HTTP/1.1, except that a connection which begins with CONNECT becomes a tunnel."""

    def __init__(self, *arguments: Any, tunnels: Tunnels, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tunnels = tunnels
        self._head = b""
        self._is_undecided = True
        self._patience: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if not self._is_undecided:
            super().data_received(data)
            return
        self._head += data
        if not self._head.startswith(_METHOD[: len(self._head)]):
            self._decide()
            super().data_received(self._head)
        elif self._patience is None:
            self._patience = self.loop.call_later(HEAD_S, self._refuse, 408, f"No whole CONNECT within {HEAD_S:g} s")
        if self._is_undecided and (_HEAD_END in self._head or len(self._head) > HEAD_BYTES):
            self._connect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._decide()
        super().connection_lost(exc)

    def _decide(self) -> None:
        self._is_undecided = False
        if self._patience is not None:
            self._patience.cancel()

    def _connect(self) -> None:
        self._decide()
        head, end, rest = self._head.partition(_HEAD_END)
        try:
            if not end or len(head) > HEAD_BYTES:
                raise RefusedTunnelError(431, f"The head of a CONNECT request is at most {HEAD_BYTES} bytes")
            if rest:
                raise RefusedTunnelError(400, "Nothing may follow a CONNECT request before its answer")
            self._tunnels.check(head.decode("latin-1"))
        except RefusedTunnelError as exc:
            self._refuse(exc.status, str(exc))
            return
        self.connections.discard(self)
        self.stop_watching()
        self._tunnels.open(cast("JoinedWrites", self.transport).inner)

    def _refuse(self, status: int, message: str) -> None:
        logger.info("CONNECT refused: %d %s", status, message)
        body = orjson.dumps({"detail": message})
        headers = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        self.transport.close()


class _FirstBytes(asyncio.Protocol):
    """Keeps what comes through a fresh tunnel until somebody takes over; no data means that the caller has left."""

    def __init__(self) -> None:
        self.have_come = asyncio.Event()
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.have_come.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.data = b""
        self.have_come.set()


async def _start_tls(transport: asyncio.Transport, protocol: asyncio.Protocol, server: uvicorn.Server) -> Any:
    """The transport inside TLS. Raises: OSError if the handshake fails or takes too long."""
    context = server.config.ssl
    assert context is not None
    loop = asyncio.get_running_loop()
    return await loop.start_tls(
        transport,
        protocol,
        context,
        server_side=True,
        ssl_handshake_timeout=HANDSHAKE_S,
        ssl_shutdown_timeout=GOODBYE_S,
    )


def _hand_over(inside: Any, data: bytes, server: uvicorn.Server) -> None:
    """Let the TLS server's own protocol go on, as if it had accepted the connection."""
    protocol: Any = server.config.http_protocol_class(
        config=server.config,  # type: ignore[call-arg]
        server_state=server.server_state,
        app_state=server.lifespan.state,
    )
    protocol.connection_made(inside)
    inside.set_protocol(protocol)
    protocol.data_received(data)
