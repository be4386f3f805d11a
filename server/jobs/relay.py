"""Log lines and steps of the jobs that run here, told to the other nodes a few times a second; nothing of it is stored.

A text that gets lost costs lines of a log until the job ends: then the whole log is in its outcome.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipelines.protocol.frames import Progress
from server.jobs.live import LiveChange, LiveJobs, WorkerTimes, log_entry
from server.jobs.store.errors import StoreError
from server.jobs.store.nodes import SILENT_S

logger = logging.getLogger("fluxserve.node")

EVERY_S = 0.1
"""What happens within so long is told together. That a job starts over is told at once, with what was said before it:
whoever claims it now must not have begun it when this arrives."""
MOST_BYTES = 7900
"""Of one text: PostgreSQL's NOTIFY takes less than 8,000."""
LONGEST_LINE = 1000
"""Characters of a log line that are told."""
GREETING = "who runs what?"


class Relay:
    """Between the live state of this node and a channel that every node of the store hears.

    Args: name: of this node; owners' names begin with it. send: passes texts to everybody, this node as well, in their
        order; raises StoreError. is_alone: whether the store knew of nobody else a moment ago.
    """

    def __init__(
        self,
        live: LiveJobs,
        name: str,
        send: Callable[[Sequence[str]], None],
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._live = live
        self._name = name
        self._send = send
        self._is_alone = is_alone
        self._untold: dict[str, LiveChange] = {}
        self._is_urgent = False
        self._has_greeted = True
        self._heard_at = -math.inf
        self._is_open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._tell_again_and_again, name="relay", daemon=True)

    def start(self) -> None:
        """Begin to tell, and ask what runs elsewhere."""
        self._live.on_change(self.note)
        self._thread.start()
        self.greet()

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def greet(self) -> None:
        """Ask for all that runs elsewhere: at the start, and after the channel was cut. Any thread."""
        with self._changed:
            self._has_greeted = False
            self._changed.notify_all()

    def note(self, change: LiveChange) -> None:
        """Tell the others soon. Any thread."""
        with self._changed:
            earlier = self._untold.get(change.job_id)
            self._untold[change.job_id] = change if earlier is None else earlier.then(change)
            self._is_urgent |= change.starts_over and not change.is_whole
            self._changed.notify_all()

    def take(self, text: str) -> None:
        """What the channel brings. Any thread."""
        try:
            sender, *changes = json.loads(text)
            if sender == self._name:
                return
            self._heard_at = time.monotonic()
            for change in changes:
                if change == GREETING:
                    self._answer()
                else:
                    self._live.take(_read(change))
        except (ValueError, TypeError):
            logger.debug("what another node tells is not understood: %.100s", text)

    def _answer(self) -> None:
        for change in self._live.whole(f"{self._name}/"):
            self.note(change)

    def _tell_again_and_again(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._untold or not self._has_greeted or not self._is_open)
                if not self._is_open:
                    return
                self._changed.wait_for(lambda: self._is_urgent or not self._is_open, EVERY_S)
                untold, self._untold = self._untold, {}
                self._is_urgent = False
                greeting, self._has_greeted = [] if self._has_greeted else [json.dumps(GREETING)], True
            if greeting or not self._is_alone() or time.monotonic() < self._heard_at + SILENT_S:
                self._tell([*greeting, *(piece for change in untold.values() for piece in _pieces(change))])

    def _tell(self, pieces: list[str]) -> None:
        try:
            self._send(list(_packed(json.dumps(self._name), pieces)))
        except StoreError as exc:
            logger.debug("the other nodes could not be told what runs here: %s", exc)


def _packed(sender: str, pieces: list[str]) -> Iterator[str]:
    """As few texts as hold them."""
    pack: list[str] = [sender]
    for piece in pieces:
        if len(pack) > 1 and sum(map(len, pack)) + len(pack) + len(piece) + 2 > MOST_BYTES:
            yield f"[{','.join(pack)}]"
            pack = [sender]
        pack.append(piece)
    yield f"[{','.join(pack)}]"


def _pieces(change: LiveChange) -> Iterator[str]:
    """A change as JSON, in as many parts as its lines need."""
    lines = [[line["message"][:LONGEST_LINE], line["level"], line["timestamp"]] for line in change.lines]
    while True:
        count = len(lines)
        while count > 1 and len(json.dumps(lines[:count])) > MOST_BYTES - 1000:
            count = -(-count // 2)
        yield _written(change, lines[:count])
        lines = lines[count:]
        if not lines:
            return
        change = replace(change, starts_over=False, is_whole=False)


def _written(change: LiveChange, lines: list[list[str]]) -> str:
    progress, times = change.progress, change.times
    return json.dumps(
        [
            change.job_id,
            lines,
            None if progress is None else [progress.epoch, progress.step, progress.num_steps, progress.eta_s],
            None if times is None else [times.owner, times.began_at],
            int(change.starts_over),
            int(change.is_whole),
        ]
    )


def _read(change: Any) -> LiveChange:
    """Raises: ValueError, TypeError for what no node of this version writes."""
    job_id, lines, progress, times, starts_over, is_whole, *_ = change
    return LiveChange(
        job_id,
        tuple(log_entry(message, level, timestamp) for message, level, timestamp in lines),
        None if progress is None else Progress(job_id, *progress),
        None if times is None else WorkerTimes(*times),
        bool(starts_over),
        bool(is_whole),
    )
