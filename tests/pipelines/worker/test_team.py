"""The processes that share steps with a worker, from its side, over real pipes."""

from __future__ import annotations

import sys

from pipelines.protocol.frames import Log
from pipelines.worker.team import Followers
from tests.server.api_server import eventually

TALKATIVE = """
import socket, sys
from pipelines.protocol.frames import Log, Ready, encode
link = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
for frame in (Log("warning", "slow"), Ready("cpu", "a processor", []), Log("info", "late"), Log("error", "no room")):
    link.sendall(encode(frame))
"""


def test_what_the_others_say_reaches_the_operator_and_their_last_complaint_says_why_they_ended() -> None:
    losses: list[tuple[str, int]] = []
    logs: list[Log] = []
    command = (sys.executable, "-c", TALKATIVE)
    followers = Followers(("cpu:0", "cpu:1"), [], lambda *loss: losses.append(loss), logs.append, command)
    followers.settle()
    eventually(lambda: losses, within_s=30)
    assert losses == [("no room", 0)]
    assert logs == [Log("warning", "cpu:1: slow"), Log("info", "cpu:1: late")]
