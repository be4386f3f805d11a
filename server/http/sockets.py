"""The WebSockets of our listeners: uvicorn's, except for how they answer a close without a code.

Browsers and fal's JS client close without one. The usual echo of nothing reads there as 1005, which the client reports
to the user as an error; an explicit 1000 is what fal sends, and allowed (RFC 6455, 5.5.1).
"""

from __future__ import annotations

import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.server import ServerProtocol

_NORMAL = Close(CloseCode.NORMAL_CLOSURE, "").serialize()


class SocketProtocol(WebSocketsSansIOProtocol):
    """For uvicorn's `ws` option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _NormalClose(
            extensions=self.conn.available_extensions,
            max_size=self.config.ws_max_size,
            logger=logging.getLogger("uvicorn.error"),
        )


class _NormalClose(ServerProtocol):
    """Takes a close frame without a code for one with 1000, and so echoes 1000."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE and not frame.data:
            frame = Frame(Opcode.CLOSE, _NORMAL)
        super().recv_frame(frame)
