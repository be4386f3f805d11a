"""Watches a Python process from its first line: which names it resolves, which addresses it calls, what it starts.

    PYTHONPATH=tests/conformance/watching WATCH_FILE=FILE python ...

Loopback passes. Everything else is written down and refused, before a packet leaves.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
from typing import Any

_file = os.open(os.environ["WATCH_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_TARGET = {
    "socket.getaddrinfo": lambda args: args[0],
    "socket.gethostbyname": lambda args: args[0],
    "socket.gethostbyaddr": lambda args: args[0],
    "socket.getnameinfo": lambda args: args[0],
    "socket.connect": lambda args: args[1],
    "socket.sendto": lambda args: args[1],
    "socket.sendmsg": lambda args: args[1],
    "subprocess.Popen": lambda args: ["subprocess", str(args[0])],
    "os.system": lambda args: ["subprocess", str(args[0])],
    "os.posix_spawn": lambda args: ["subprocess", str(args[0])],
}


def _text(target: Any) -> str | None:
    """A host, an address or a path; None for a socket that was connected, and looked at, before."""
    if isinstance(target, (tuple, list)):
        target = target[0]
    return target.decode("ascii", "replace") if isinstance(target, bytes) else target


def _is_loopback(text: str | None) -> bool:
    if text is None or text == "localhost" or text.startswith(("/", "\0")):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    find = _TARGET.get(event)
    if find is None:
        return
    target = _text(find(args))
    passes = _is_loopback(target)
    os.write(_file, (json.dumps({"event": event, "target": target, "passes": passes}) + "\n").encode())
    if not passes:
        kind = socket.gaierror if event.startswith("socket.get") else ConnectionRefusedError
        raise kind(f"the watch let nothing go to {target}")


sys.addaudithook(_watch)
