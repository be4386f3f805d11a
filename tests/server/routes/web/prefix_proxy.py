"""A reverse proxy that serves a server below a path, as nginx would: takes the prefix away and says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def below(prefix: str, port: int) -> Iterator[str]:
    """The address of `http://127.0.0.1:port/` under `prefix`; one connection a request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, prefix, port), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"


def _accept(listener: socket.socket, prefix: str, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_pass_on, args=(client, prefix, port), daemon=True).start()


def _pass_on(client: socket.socket, prefix: str, port: int) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as upstream:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (chunk := client.recv(65536)):
                return
            head += chunk
        line, _, rest = head.partition(b"\r\n")
        line = line.replace(f" {prefix}".encode(), b" ", 1).replace(b"  ", b" / ")
        upstream.sendall(line + b"\r\nX-Forwarded-Prefix: " + prefix.encode() + b"\r\nConnection: close\r\n" + rest)
        threading.Thread(target=_pump, args=(client, upstream), daemon=True).start()
        _pump(upstream, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
