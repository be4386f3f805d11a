"""A front of the real S3 service that answers some requests wrongly, as services, proxies and networks do."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.ports import free_port

_OF_A_CONNECTION = ("connection", "content-length", "transfer-encoding")


class Asked(BaseHTTPRequestHandler):
    """One request to the service, with its ways of being answered."""

    protocol_version = "HTTP/1.1"
    server: Front

    def answer(self) -> None:
        """By the first fault that takes it, or else by the service."""
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not any(fault(self) for fault in self.server.faults):
            self.forward()

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def forward(self, cut: bool = False, held: threading.Event | None = None) -> bool:
        """The service's own answer. Args: cut: half of its body, and the connection ends. held: half, and the rest
        when it is set."""
        status, headers, data = self._of_the_service()
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        if held is not None:
            held.wait(30)
        self.close_connection = cut or held is not None
        if not self.close_connection:
            self.wfile.write(data[len(data) // 2 :])
        return True

    def say(self, status: int, body: str = "", **headers: str) -> bool:
        """Another answer."""
        self.send_response_only(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())
        return True

    def refuse(self, status: int, code: str) -> bool:
        """An error as S3 words it."""
        return self.say(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>")

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _of_the_service(self) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.body)
            answer = connection.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION]
            return answer.status, headers, answer.read()


class Front(ThreadingHTTPServer):
    """Args: behind: host and port of the service. `faults` look at every request, and say whether they answered it."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", free_port()), Asked)
        self.behind = behind
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.faults: list[Callable[[Asked], bool]] = []


@contextlib.contextmanager
def front_of(endpoint: str) -> Iterator[Front]:
    """A front before the service at this address."""
    with Front(endpoint.removeprefix("http://")) as front:
        thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield front
        finally:
            front.shutdown()
            thread.join()
