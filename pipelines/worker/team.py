"""A worker over several devices: the processes that compute steps with it, started, told, and missed when they die."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, TypeVar

from models.accelerator import Accelerator
from pipelines.engine.request import RequestError
from pipelines.families.pool import ModelPool
from pipelines.families.split import Split, Splittable, follow
from pipelines.ops.ranks import Ranks, rendezvous
from pipelines.protocol.frames import Frame, Loading, Log, Ready, Share, Shared, Sleep, Wake
from pipelines.worker.link import Link

F = TypeVar("F", Ready, Shared)

COMMAND = (sys.executable, "-m", "pipelines.worker")

ANSWER_S = 1.0
"""How long one look for an answer lasts; there may be any number of them."""

OnLoss = Callable[[str, int], None]
"""(one sentence, exit status of the process that is gone); called from another thread."""


OnLog = Callable[[Log], None]
"""Told what the others have to say to the operator; called from another thread."""


class Member:
    """One process that follows, from the leader's side. Args: command: starts it."""

    def __init__(self, device: str, command: Sequence[str], inherited: int, on_loss: OnLoss, on_log: OnLog) -> None:
        self._device = device
        self._on_loss = on_loss
        self._on_log = on_log
        self._complaint: str | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            # It leads no group of its own: whoever kills the worker's kills it, too.
            self._process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), inherited),
            )
        self._link = Link(ours, self._lost, self._note)

    def tell(self, frame: Frame) -> None:
        self._link.send(frame)

    def answer(self, kind: type[F]) -> F:
        """Its next frame of this kind, waited for; if it ends instead, `on_loss` is told."""
        while True:
            for frame in self._link.receive(ANSWER_S):
                if isinstance(frame, kind):
                    return frame

    def _note(self, frame: Frame) -> bool:
        """Pass on what is for the operator. Errors it says before it ends: they are why."""
        if not isinstance(frame, Log):
            return False
        if frame.level in ("error", "critical"):
            self._complaint = frame.message
        else:
            self._on_log(Log(frame.level, f"{self._device}: {frame.message}"))
        return True

    def _lost(self) -> None:
        status = self._process.wait()
        ended = f"the process that shares steps on {self._device} ended (status {status})"
        self._on_loss(self._complaint or ended, status)


class Followers:
    """The processes of every device but the first, which is the leader's own.

    Args:
        devices: one for each rank. arguments: of the leader's command line, which are theirs, too.
        on_loss: told of the first that is gone. on_log: told what they say besides.
        command: starts one, before its arguments.
    """

    def __init__(
        self,
        devices: Sequence[str],
        arguments: Sequence[str],
        on_loss: OnLoss,
        on_log: OnLog = lambda log: None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.store = rendezvous()
        self._on_loss = on_loss
        self._is_lost = threading.Lock()
        self._members = [
            Member(
                device,
                [*command, *arguments, "--rank", str(rank), "--store", str(self.store)],
                self.store,
                self._lost,
                on_log,
            )
            for rank, device in enumerate(devices)
            if rank
        ]

    def tell(self, frame: Frame) -> None:
        for member in self._members:
            member.tell(frame)

    def settle(self) -> None:
        """Return once all have answered Ready."""
        for member in self._members:
            member.answer(Ready)

    def hear(self) -> list[Shared]:
        """Of each, how it fared with the last Share."""
        return [member.answer(Shared) for member in self._members]

    def _lost(self, sentence: str, status: int) -> None:
        if self._is_lost.acquire(blocking=False):
            self._on_loss(sentence, status)


def obey(link: Link, pool: ModelPool, ranks: Ranks, accelerator: Accelerator) -> NoReturn:
    """Do what the leader says, a share of its steps above all, until it hangs up."""

    def split_of(group: str) -> Split:
        runner = pool.runner(group)
        assert isinstance(runner, Splittable)
        if runner.split.group != group:
            raise RequestError(f"one of the devices has no room for {group}, which another computes with")
        return runner.split

    while True:
        for frame in link.receive(ANSWER_S):
            if isinstance(frame, Share):
                link.send(follow(ranks, frame, accelerator, split_of))
            elif isinstance(frame, Loading):
                with suppress(RequestError):  # a step with it will fail for the same reason, and say so
                    pool.runner(frame.model)
            elif isinstance(frame, Wake):
                pool.load_all()
                link.send(Ready(str(accelerator.device), accelerator.name, []))
            elif isinstance(frame, Sleep):
                pool.unload()
