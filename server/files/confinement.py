"""What a pool process may do: make pixels of bytes and bytes of pixels, in bounded memory, and write no file."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from contextlib import suppress

MEMORY_BYTES = 3 << 30
"""Address space. Reading the largest picture takes 0.5 GB."""

OPEN_FILES = 64

_LIMITS = {
    resource.RLIMIT_AS: MEMORY_BYTES,
    resource.RLIMIT_NOFILE: OPEN_FILES,
    # Answers go through pipes, which this does not count.
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
}


def confine() -> None:
    """Called first in every pool process: bytes that somebody made up may get the better of a decoder."""
    _end_with_parent()
    for kind, most in _LIMITS.items():
        # A limit that the machine holds lower already cannot be raised, nor needs to be.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _end_with_parent() -> None:
    """Make this pool process exit when the node does, even by kill -9: nothing else would wake it.

    And not before: a Ctrl-C at the terminal reaches it too, as does systemd's stop, but the node may have pictures to
    finish.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
