"""Ports for the servers that tests start."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

OWN_PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A port that nobody listens on, outside the range that the system hands out by itself.

    From that range another test's server or client would be given it before ours has started, and answer for it."""
    while True:
        port = secrets.choice(OWN_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
