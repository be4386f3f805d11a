"""Offers to upgrade to a protocol that is not spoken here are ignored, and the request is served (RFC 9110, 7.8).

Java's HTTP client offers h2c with its first request. The parser then takes the request to end after its headers, body
or not, so it is put in the same state again without the offer.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFERS = frozenset({b"upgrade", b"http2-settings"})


class UpgradesIgnored(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, in which only WebSockets are upgraded to."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._go_on_without(data[exc.args[0] :])
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _go_on_without(self, rest: bytes) -> None:
        """Let a fresh parser stand behind the same headers without the offer, and read what follows them."""
        version, method = self.parser.get_http_version().encode(), self.parser.get_method()
        head = [method, b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.scope["headers"]:
            if name == b"connection":
                kept = (token for token in value.split(b",") if token.strip().lower() not in _OFFERS)
                head += [name, b": ", b",".join(kept), b"\r\n"]
            elif name not in _OFFERS:
                head += [name, b": ", value, b"\r\n"]
        self.cycle.more_body = True
        self.cycle.message_event.clear()
        replayed = _Replayed(self)
        self.parser = httptools.HttpRequestParser(replayed)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"".join([*head, b"\r\n"]))
        replayed.is_behind_head = True
        if rest:
            self.data_received(rest)


class _Replayed:
    """What a parser calls that reads a head for the second time: nothing is passed on until it is behind that."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self.is_behind_head = False
        self._protocol = protocol

    def on_message_begin(self) -> None:
        if self.is_behind_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.is_behind_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_behind_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_behind_head:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()
