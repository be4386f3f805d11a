"""Runs the node: one ASGI app behind a plain and a TLS listener in one event loop, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import uvicorn

from server.http.joined_writes import Http
from server.http.renewal import keep_certificate
from server.http.sockets import SocketProtocol
from server.http.tls import TlsFiles
from server.http.tunnels import Tunnels

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("fluxserve.http")

DRAIN_S = 10
"""How long open answers may still take after the first signal, in seconds; a second signal ends them at once."""

SAME_SIGNAL_S = 1.0
"""Signals this close together count as one."""

SWITCH_S = 0.001
"""How soon a waiting thread gets the interpreter from a busy event loop. A submit needs it some four times, on the way
to its commit and back; with Python's own 5 ms that alone was 16 ms beside a loop that never rests."""


class PortInUseError(Exception):
    """Somebody else listens there; the message names the flag that moves us."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound sockets, not yet accepting. `tls` is None when TLS is off."""

    plain: socket.socket
    tls: socket.socket | None

    @property
    def port(self) -> int:
        return int(self.plain.getsockname()[1])

    @property
    def tls_port(self) -> int | None:
        return int(self.tls.getsockname()[1]) if self.tls else None

    def close(self) -> None:
        """Give the ports back."""
        self.plain.close()
        if self.tls:
            self.tls.close()


def listen(host: str, port: int, tls_port: int) -> Listeners:
    """Bind both ports before anything slow happens.

    Raises: PortInUseError; OSError when `host` is not ours.
    """
    plain = _bind(host, port, "--port")
    try:
        return Listeners(plain, _bind(host, tls_port, "--tls-port") if tls_port else None)
    except BaseException:
        plain.close()
        raise


def run(
    app: ASGIApp,
    listeners: Listeners,
    tls: TlsFiles | None,
    on_started: Callable[[], Awaitable[None]],
    tunnel_ends: Mapping[str, Collection[int]] = MappingProxyType({}),
    renew: Callable[[], TlsFiles] | None = None,
    on_stop: Callable[[bool], None] | None = None,
    keep_alive_s: int = 75,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then drain: returns when the app's lifespan has ended.

    Args: on_started: awaited beside the servers once both accept connections. tunnel_ends: names and
        ports where CONNECT may lead.
        renew: makes the certificate's files anew where it is time to, asked now and then. on_stop: told of the first
        signal, and of a second one (True), which drops what is open. keep_alive_s: a connection idle for so long is
        closed.
    """
    sys.setswitchinterval(SWITCH_S)
    tunnels = Tunnels(tunnel_ends)
    plain = _QuietServer(_config(app, "on", keep_alive_s, tunnels.plain_protocol()))
    over_tls = _QuietServer(_config(app, "off", keep_alive_s, tls=tls)) if listeners.tls else None
    with asyncio.Runner(loop_factory=plain.config.get_loop_factory()) as runner:
        runner.run(_serve_both(plain, over_tls, listeners, tunnels, on_started, renew, on_stop))


async def _serve_both(
    plain: _QuietServer,
    over_tls: _QuietServer | None,
    listeners: Listeners,
    tunnels: Tunnels,
    on_started: Callable[[], Awaitable[None]],
    renew: Callable[[], TlsFiles] | None,
    on_stop: Callable[[bool], None] | None,
) -> None:
    _stop_on_signals([plain] if over_tls is None else [over_tls, plain], on_stop)
    # The plain server owns the app's lifespan: it starts first and stops last.
    first, second = await plain.start(listeners.plain), None
    if over_tls is not None and listeners.tls is not None:
        second = await over_tls.start(listeners.tls)
        tunnels.lead_to(over_tls)
    # What exists by now stays: without this, a full collection walks through it again and no answer leaves for 60 ms.
    gc.freeze()
    beside = [asyncio.ensure_future(on_started())]
    if over_tls is not None and over_tls.config.ssl is not None and renew is not None:
        beside.append(asyncio.ensure_future(keep_certificate(over_tls.config.ssl, renew)))
    try:
        if second is not None:
            await second
            plain.should_exit = True
        await first
    finally:
        tunnels.close()
        for task in beside:
            task.cancel()
        for ended in await asyncio.gather(*beside, return_exceptions=True):
            if isinstance(ended, Exception):
                logger.error("a task beside the server failed", exc_info=ended)


class _QuietServer(uvicorn.Server):
    """uvicorn's server with the signals left to us, as two share the process, and an event for being up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._is_up.set()

    async def start(self, sock: socket.socket) -> asyncio.Task[None]:
        """Begin to serve: returns the serving task once connections are accepted.

        Raises: whatever kept it from starting."""
        serving = asyncio.create_task(self.serve([sock]))
        is_up = asyncio.create_task(self._is_up.wait())
        await asyncio.wait((serving, is_up), return_when=asyncio.FIRST_COMPLETED)
        is_up.cancel()
        if serving.done():
            serving.result()
        return serving


def _stop_on_signals(servers: list[uvicorn.Server], on_stop: Callable[[bool], None] | None) -> None:
    """The first signal asks the servers to drain, one after the other; a later one makes them drop what is open."""
    loop = asyncio.get_running_loop()
    first: list[float] = []

    def stop() -> None:
        # One stop often arrives twice: once to the process group and once handed on by make.
        is_forced = bool(first) and loop.time() - first[0] > SAME_SIGNAL_S
        if on_stop is not None and (is_forced or not first):
            on_stop(is_forced)
        if is_forced:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            for server in servers:
                server.force_exit = True
        first.append(loop.time())
        servers[0].should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


def _config(
    app: ASGIApp,
    lifespan: Literal["on", "off"],
    keep_alive_s: int,
    http: type[asyncio.Protocol] = Http,
    tls: TlsFiles | None = None,
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http,
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        ws=SocketProtocol,
        # Forwarded headers are read, and distrusted, in server.gateway.areas.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=tls.server if tls else None,
        ssl_keyfile=tls.server_key if tls else None,
    )


def _bind(host: str, port: int, flag: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} of {host} is in use: stop what listens there, or give another with {flag}"
            ) from exc
        if exc.errno == errno.EACCES:
            raise PortInUseError(f"port {port} needs privileges: give one above 1023 with {flag}") from exc
        raise
