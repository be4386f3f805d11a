"""Limits for callers that begin a request and do not go on, or do not read the answer: such connections would stay open
for ever. And for how many there are: the store, pictures and workers need descriptors, too."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.http.upgrades import UpgradesIgnored

HEAD_S = 15.0
"""From the opening of a connection, or a request's first byte, to the end of its headers."""
HEAD_BYTES = 64 << 10
"""What request line and headers may measure."""
BODY_S = 30.0
"""How long nothing may come of a body that is not complete."""
UNREAD_S = 60.0
"""How long a caller may take nothing of an answer that waits for it."""
KEPT_FREE = 256
"""Descriptors that no connection gets; of few, a quarter."""


class _Flow(FlowControl):
    """uvicorn's flow control, which remembers when reading went on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop, self.resumed_at = loop, 0.0

    def resume_reading(self) -> None:
        if self.read_paused:
            self.resumed_at = self._loop.time()
        super().resume_reading()


class PatientHttp(UpgradesIgnored):
    """uvicorn's HTTP/1.1, in which heads are bounded in bytes and time, bodies must go on, and answers must be read."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._read: object = None
        """Of the request that came to its end last; every poll passes here, so nothing else is noted of one."""
        self._head_bytes = 0
        self._since = self._heard_at = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._has_read_on = False
        self._our_flow: _Flow

    @property
    def _is_in_head(self) -> bool:
        return self.scope is None or "method" not in self.scope

    @property
    def _is_in_body(self) -> bool:
        return not self._is_in_head and self.scope is not self._read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._our_flow = _Flow(transport, self.loop)
        if _is_one_too_many(transport):
            transport.write(STATUS_LINE[503] + b"retry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            transport.close()
        else:
            self._look_later(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        read = self._read
        if self.scope is not None and self.scope is read:
            self._since, self._head_bytes = self._heard_at, len(data)
        elif self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.scope is None or self.scope is not self._read:  # nearly all requests come in one piece
            self._watch(began_behind_another=self._read is not read)

    def _watch(self, began_behind_another: bool) -> None:
        """Of a request that is not complete."""
        if began_behind_another:
            self._since, self._head_bytes = self._heard_at, 1
        if self._is_in_head and self._head_bytes > HEAD_BYTES:
            self._hang_up(431)
        elif self._timer is None:
            self._look_later(HEAD_S if self._is_in_head else BODY_S)

    def on_message_complete(self) -> None:
        self._read = self.scope
        super().on_message_complete()

    def _go_on_without(self, rest: bytes) -> None:
        self._read = None  # the body is still to come
        super()._go_on_without(rest)

    def handle_websocket_upgrade(self) -> None:
        self.stop_watching()
        super().handle_websocket_upgrade()

    def stop_watching(self) -> None:
        """Somebody else speaks on this connection from now on."""
        self._read = self.scope
        for timer in (self._timer, self._reader_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._look_at_reader_later()

    def resume_writing(self) -> None:
        self._has_read_on = True
        super().resume_writing()

    def _look_at_reader_later(self) -> None:
        self._has_read_on = False
        waiting = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(UNREAD_S, self._look_at_reader, waiting)

    def _look_at_reader(self, waited: int) -> None:
        """Give up a caller who has taken none of the bytes that waited for it: closing would wait for it, too."""
        self._reader_timer = None
        waiting = self.transport.get_write_buffer_size()
        if waiting >= waited and not self._has_read_on:
            self.transport.abort()
        elif waiting:
            self._look_at_reader_later()

    def _look_later(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._is_in_body and self.flow.read_paused:
            self._look_later(BODY_S)  # it is we who do not read
        elif self._is_in_head or self._is_in_body:
            heard_at = max(self._heard_at, self._our_flow.resumed_at)
            left_s = self._since + HEAD_S - now if self._is_in_head else heard_at + BODY_S - now
            if left_s > 0:
                self._look_later(left_s)
            else:
                self._hang_up(408)

    def _hang_up(self, status: int) -> None:
        """Close the connection, with an answer where none is under way."""
        if self._is_in_head and self._head_bytes and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


def _is_one_too_many(transport: asyncio.Transport) -> bool:
    """Told by its number: the system gives the lowest that is free."""
    sock, most = transport.get_extra_info("socket"), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if sock is None or most == resource.RLIM_INFINITY:
        return False
    return bool(sock.fileno() >= most - min(KEPT_FREE, most // 4))
