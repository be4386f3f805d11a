"""The worker's end of the socket to the node: one thread reads frames, one writes them."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable

from pipelines.protocol.frames import Frame, FrameReader, ProtocolError, encode


def _leave() -> None:
    # Without a node the pictures go nowhere, and the loop may be in a long step: exit at once.
    os._exit(0)


class Link:
    """The socket to the node, or between processes that share steps.

    A reader thread fills the inbox, a writer thread empties the outbox.

    All frames, heartbeats included, are made by the engine's loop: while it hangs, none is sent, and the node notices.

    Args:
        on_end: called by one of the threads when there is nobody at the other end any more.
        take_aside: called by the reader with each frame; those for which it returns True are not received.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_end: Callable[[], None] = _leave,
        take_aside: Callable[[Frame], bool] = lambda frame: False,
    ) -> None:
        self._socket = sock
        self._on_end = on_end
        self._take_aside = take_aside
        self._inbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._outbox: queue.Queue[bytes | None] = queue.Queue(maxsize=1024)
        self._writer = threading.Thread(target=self._write, name="frames-out", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="frames-in", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Queue one frame; waits only if the node has stopped reading."""
        self._outbox.put(encode(frame))

    def receive(self, timeout_s: float) -> list[Frame]:
        """What has arrived; with nothing there, waits up to `timeout_s` for a frame or a `wake`."""
        frames: list[Frame | None] = []
        try:
            frames.append(self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait())
            while True:
                frames.append(self._inbox.get_nowait())
        except queue.Empty:
            return [frame for frame in frames if frame is not None]

    def wake(self) -> None:
        """End a `receive` that waits; from any thread."""
        self._inbox.put(None)

    def close(self) -> None:
        """Send what is queued, then let go of the socket."""
        self._outbox.put(None)
        self._writer.join(timeout=5)
        self._socket.detach()  # the reader still sits in recv; the descriptor goes with the process

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self._socket.sendall(data)
            except OSError:
                return self._on_end()

    def _read(self) -> None:
        reader = FrameReader()
        try:
            while data := self._socket.recv(1 << 16):
                for frame in reader.feed(data):
                    if not self._take_aside(frame):
                        self._inbox.put(frame)
        except (OSError, ProtocolError) as exc:
            print(f"worker: the node's frames ended ({exc})", file=sys.stderr)
        self._on_end()
