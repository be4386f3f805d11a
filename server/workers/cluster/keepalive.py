"""A machine that lost its power or its network says nothing: the system asks it, below TLS."""

from __future__ import annotations

import asyncio
import socket

IDLE_S, EVERY_S, TIMES = 5, 5, 3
"""20 seconds without an answer end a connection: less than the lease of what the worker there was doing."""


def notice_a_silent_peer(writer: asyncio.StreamWriter) -> None:
    """Let reads and writes of this connection fail when its machine has been silent for so long."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, EVERY_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TIMES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Without it, what was sent and never acknowledged keeps the probes from being sent.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (IDLE_S + EVERY_S * TIMES) * 1000)
