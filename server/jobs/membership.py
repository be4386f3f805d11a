"""This node among those of its store: it reports once a second, hears what shall rest, and shares what runs here."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from server.jobs.dispatcher import Dispatcher, Rest
from server.jobs.live import LiveJobs
from server.jobs.relay import Relay
from server.jobs.store.base import Store
from server.jobs.store.errors import StoreError
from server.jobs.store.nodes import NodeReport, SeenNode
from server.settings import VERSION
from server.workers.process import Worker, Workers

logger = logging.getLogger("fluxserve.node")

BEAT_S = 1.0
LEAVE_S = 3.0
"""How long a stop waits for a store that may not answer."""


def new_name() -> str:
    """Of one life of a node: random, so that a claim of an earlier life is never taken for one of ours."""
    return f"{socket.gethostname().partition('.')[0][:40]}-{secrets.token_hex(4)}"


@dataclass
class Membership:
    """Reports for one node, from `start` to `leave`.

    Args: callers: ids of the jobs whose end an open connection of this node waits for. models: that it serves.
        files: where it keeps pictures (see NodeReport). url: where it answers.
        seen: the nodes as the store knew them a moment ago. is_resting: whether the whole node was told to rest.
    """

    store: Store
    name: str
    workers: Workers
    dispatcher: Dispatcher
    live: LiveJobs
    callers: Collection[str]
    models: frozenset[str] = frozenset()
    files: str = ""
    url: str | None = None
    seen: list[SeenNode] = field(default_factory=list)
    is_resting: bool = False
    _state: Callable[[], str] = lambda: "starting"
    _started_at: float = 0.0
    _task: asyncio.Task[None] | None = None
    _relay: Relay | None = None
    _strangers: frozenset[str] = frozenset()

    def start(self, state: Callable[[], str]) -> None:
        """Begin; needs a running event loop. Args: state: the node's, in a word."""
        self._state = state
        self._started_at = self.store.now()
        if (channel := self.store.channel) is not None:
            self._relay = Relay(self.live, self.name, channel.tell, self._is_alone)
            channel.hear(self._relay.take, self._relay.greet)
            self._relay.start()
        self._task = asyncio.create_task(self._report_again_and_again(), name="membership")

    async def leave(self) -> None:
        """Report no more, and be forgotten. Before the store is closed."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(LEAVE_S):
                if self._relay is not None:
                    await asyncio.to_thread(self._relay.close)
                await asyncio.to_thread(self.store.forget_node, self.name)
        except (StoreError, TimeoutError) as exc:
            logger.warning("this node could not say that it leaves: %s", str(exc) or "the store does not answer")

    async def beat(self) -> None:
        """Report now, and do what is asked. Raises: StoreError."""
        names, self.seen = await asyncio.to_thread(self._exchange, self.report())
        self.is_resting = self.name in names
        self._look_for_strangers()
        self.dispatcher.let_rest(names | ({worker.name for worker in self.workers} if self.is_resting else set()))

    async def order(self, name: str, is_wanted: bool) -> bool:
        """Have a node or a worker, here or elsewhere, rest or take jobs again; False if nobody has that name.

        Raises: StoreError."""
        is_known = await asyncio.to_thread(self.store.rest, name, is_wanted)
        await self.beat()  # it may be about this node
        return is_known

    @property
    def rest(self) -> Rest | None:
        """How far the node is, if it was told to rest: drained when nothing is left that its end would interrupt."""
        if not self.is_resting:
            return None
        is_busy = self.callers or any(self.dispatcher.rest_of(worker) == "draining" for worker in self.workers)
        return "draining" if is_busy else "drained"

    def report(self) -> NodeReport:
        """What this node and its workers do now."""
        workers = [self._described(worker) for worker in self.workers]
        return NodeReport(
            self.name,
            self.url,
            VERSION,
            self._state(),
            self._started_at,
            len(self.callers),
            self.rest,
            workers,
            sorted(self.models),
            self.files,
        )

    def _look_for_strangers(self) -> None:
        """Say once of each node that keeps its files elsewhere: what it draws would be missing here."""
        others = [node.report for node in self.seen if not node.is_silent and node.report.files not in ("", self.files)]
        for other in others:
            if other.name not in self._strangers:
                logger.error(
                    "node %s keeps pictures in %s and this one in %s, so what it draws is 404 here: "
                    "start all nodes of a store with the same --objects",
                    other.name,
                    other.files,
                    self.files,
                )
        self._strangers = frozenset(other.name for other in others)

    def _is_alone(self) -> bool:
        return all(node.report.name == self.name or node.is_silent for node in self.seen)

    def _described(self, worker: Worker) -> dict[str, Any]:
        shown = ("device", "device_name", "state", "models", "loaded", "restarts", "last_error")
        said = worker.describe()
        return {
            "name": worker.name,
            "rest": self.dispatcher.rest_of(worker),
            **{name: said[name] for name in shown},
            "holds": [self._held(run.job.id, run.job.started_at) for run in self.dispatcher.runs_of(worker)],
        }

    def _held(self, job_id: str, claimed_at: float | None) -> dict[str, Any]:
        times, progress = self.live.times(job_id), self.live.progress(job_id)
        return {
            "request_id": job_id,
            "claimed_at": claimed_at,
            "began_at": None if times is None else times.began_at,
            "step": None if progress is None else progress.step,
            "num_steps": None if progress is None else progress.num_steps,
        }

    def _exchange(self, report: NodeReport) -> tuple[frozenset[str], list[SeenNode]]:
        return self.store.note_node(report), self.store.nodes()

    async def _report_again_and_again(self) -> None:
        while True:
            try:
                await self.beat()
            except StoreError as exc:
                logger.debug("this node could not report: %s", exc)
            except Exception:
                logger.exception("this node could not report; it will be tried again")
            await asyncio.sleep(BEAT_S)
