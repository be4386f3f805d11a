"""Signals that are meant for the node but reach its workers, too. No torch."""

from __future__ import annotations

import signal


def leave_signals_to_the_node() -> None:
    """Go on when a stop is sent to every process, as systemd does: the node says when to end.

    By handlers and not SIG_IGN, which the compilers that a worker starts would inherit."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
