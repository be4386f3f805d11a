"""Worker processes: one a device, its frames read, its death noticed at once, started again."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from pipelines.protocol.frames import (
    Finished,
    Frame,
    FrameReader,
    Heartbeat,
    Loading,
    Log,
    ProtocolError,
    Ready,
    Shutdown,
    Sleep,
    Wake,
    encode,
)
from server.workers.child import ChildProcesses
from server.workers.transport import READ_SIZE, Ending, Process, Transport

logger = logging.getLogger("fluxserve.worker")

WORKER_COMMAND = (sys.executable, "-m", "pipelines.worker")
FAKE_COMMAND = (sys.executable, "-m", "pipelines.fake")
"""Speaks the same frames and takes the same arguments."""
_ROOT = Path(__file__).parents[2]

LOAD_HANG_S = 1800.0
"""Silence allowed while a model loads: reading tens of gigabytes may be one long stage."""
STEADY_S = 60.0
"""A worker that was ready for so long, or finished a job, counts as sound: its next restart is immediate."""
MAX_BACKOFF_S = 30.0
STOP_S = 1.0
LAST_LOOK_S = 2.0
"""A silent worker is given so much more before it is killed: four of its heartbeats."""

_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Folders below `cache_dir` for the libraries' compiled kernels, unless the operator's environment names others."""


class WorkerState(StrEnum):
    """Where a worker process stands."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"
    RETIRING = "retiring"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class WorkerEvents(Protocol):
    """Listens to what workers do; called on the event loop and must return quickly."""

    def on_frame(self, worker: Worker, frame: Frame) -> None:
        """A frame about a job, or Ready, Heartbeat or the Loading of one that was ready, after it was noted here."""

    def on_death(self, worker: Worker, owner: str) -> None:
        """The process that claimed as `owner` is gone, unasked; nothing of it will come any more."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker is started with.

    Args:
        hang_s: a loaded worker silent for so long is killed.
        warmup: auto, none or full; warmup_sizes: (width, height) of what it draws before it is ready.
        adapters: the folder of the LoRAs that requests name; None has none.
        unload_after_s: idle for so long, a worker frees its device; None keeps it.
        model_dirs: where single files and their companions are sought.
        on_demand: models that the first request for one loads; fetch_on_demand: downloaded if need be.
        no_mmap: files of weights are read, not mapped.
        cache_dir: keeps what PyTorch and Triton compile over a restart; None leaves their own folders.
    """

    models: tuple[str, ...]
    dtype: str = "auto"
    quantization: str = "none"
    acceleration: str = "max"
    offload: str = "none"
    tuning: str = ""
    memory_gb: float | None = None
    hang_s: float = 120.0
    warmup: str = "auto"
    warmup_sizes: tuple[tuple[int, int], ...] = ()
    adapters: Path | None = None
    cache_dir: Path | None = None
    model_dirs: tuple[str, ...] = ()
    on_demand: tuple[str, ...] = ()
    fetch_on_demand: bool = False
    unload_after_s: float | None = None
    no_mmap: bool = False
    command: Sequence[str] = WORKER_COMMAND

    def argv(self, descriptor: int, device: str) -> list[str]:
        """The child's command line."""
        return [*self.command, "--fd", str(descriptor), *self.arguments(device)]

    def arguments(self, device: str) -> list[str]:
        """What it is told besides where its frames come from."""
        fixed = ["--device", device, "--dtype", self.dtype]
        models = [part for model in self.models for part in ("--model", model)]
        models += [part for folder in self.model_dirs for part in ("--model-dir", folder)]
        models += [part for model in self.on_demand for part in ("--on-demand", model)]
        models += ["--fetch-on-demand"] if self.fetch_on_demand else []
        memory = [] if self.memory_gb is None else ["--memory-gb", str(self.memory_gb)]
        memory += [] if self.unload_after_s is None else ["--unload-after", str(self.unload_after_s)]
        memory += ["--no-mmap"] if self.no_mmap else []
        sizes = [part for width, height in self.warmup_sizes for part in ("--warmup-size", f"{width}x{height}")]
        warmup = ["--warmup", self.warmup, *sizes]
        weights = ["--quantization", self.quantization, "--offload", self.offload]
        weights += ["--acceleration", self.acceleration, "--tuning", self.tuning]
        adapters = [] if self.adapters is None else ["--adapters", str(self.adapters)]
        return [*fixed, *weights, *memory, *adapters, *warmup, *models]

    def environment(self) -> dict[str, str]:
        """The child's environment: ours, finding our packages from any working folder, and with prompt output."""
        path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        fixed = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        caches = {name: str(self.cache_dir / folder) for name, folder in _CACHES.items()} if self.cache_dir else {}
        # What transformers warns of at import is nothing an operator can act on.
        return {"TRANSFORMERS_VERBOSITY": "error", **caches, **os.environ, **fixed}


class Worker:
    """One device's worker, through all its processes.

    Args:
        name: unique among the nodes that share a store; `owner` adds the number of the process to it.
        transport: starts its processes; None takes children of this one.
    """

    def __init__(
        self,
        name: str,
        device: str,
        options: WorkerOptions,
        events: WorkerEvents,
        transport: Transport | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.state = WorkerState.STARTING
        self.pid: int | None = None
        self.host: str | None = None
        self.waits_for: str | None = None
        self.loading: Loading | None = None
        self.ready: Ready | None = None
        self.heartbeat: Heartbeat | None = None
        self.restarts = 0
        self.last_error: str | None = None
        self._options = options
        self._events = events
        self._transport = transport or ChildProcesses(options.argv, options.environment)
        self._generation = 0
        self._failures = 0
        self._is_stopping = False
        self._is_last = False
        self._is_to_sleep = False
        self.is_retiring = False
        self._is_loading = False
        self._ready_at = 0.0
        self._writer: asyncio.StreamWriter | None = None
        self._last_error_line: str | None = None

    @property
    def owner(self) -> str:
        """The name that the present process claims under; a later process never uses it again."""
        return f"{self.name}#{self._generation}"

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it can run now."""
        if self.ready is None:
            return frozenset()
        return frozenset(model["name"] for model in self.ready.models) | frozenset(self.ready.on_demand)

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY

    def send(self, frame: Frame) -> None:
        """Pass a frame to the process; lost if it is dying, which `on_death` then repairs."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(frame))

    async def run(self) -> None:
        """Keep a process alive until `stop`, or until cancelled."""
        try:
            await self._live_once()
            while await self._is_wanted_again():
                self.restarts += 1
                await self._live_once()
        finally:
            self.state = WorkerState.STOPPED

    async def _is_wanted_again(self) -> bool:
        """Whether another process shall be started, told when it is time for it."""
        if not self._is_last:
            await asyncio.sleep(self._backoff_s())
        return not self._is_last

    def start_no_other(self) -> None:
        """Should the process end from now on, it is not replaced."""
        self._is_last = True

    def retire(self) -> None:
        """Take no more requests; whoever says so asks it to `leave` when those that it has are done."""
        self.is_retiring = self._is_last = True
        self.state = WorkerState.RETIRING

    def leave(self) -> None:
        """Ask a process that retires to end. What it has not given back by then counts as lost with it."""
        self.send(Shutdown())

    def sleep(self) -> None:
        """Take no more requests, and free the device when those that it has are done; lasts until `wake`."""
        self._is_to_sleep = True
        if self.state is WorkerState.READY:
            self.state = WorkerState.ASLEEP
            self.send(Sleep())

    def wake(self) -> None:
        """Load again; requests are taken from then on."""
        self._is_to_sleep = False
        if self.state is WorkerState.ASLEEP:
            self.state = WorkerState.LOADING
            self.send(Wake())

    def stop(self) -> None:
        """Ask the process to end, and start no other."""
        self._is_stopping = self._is_last = True
        self.send(Shutdown())

    def _backoff_s(self) -> float:
        """Seconds to wait: none after the first failure, then 0.2 s doubling up to MAX_BACKOFF_S."""
        if self._failures <= 1:
            return 0.0
        return float(min(0.2 * 2 ** (min(self._failures, 20) - 2), MAX_BACKOFF_S))

    async def _live_once(self) -> None:
        """One process from start to death, with its owner's death reported at the end."""
        self._generation += 1
        self.state, self.loading, self.ready, self.heartbeat = WorkerState.STARTING, None, None, None
        self._last_error_line = None
        owner = self.owner
        try:
            process = await self._transport.start(self.device, self._note_wait)
        except Exception as exc:
            if not isinstance(exc, OSError):
                logger.exception("%s: starting its worker failed by a fault of this program", self.device)
            self.last_error = f"cannot start: {exc}"
            self._failures += 1
            self.state = WorkerState.RESTARTING
            return
        self.pid, self.host, self._writer = process.pid, process.host, process.writer
        self.waits_for = None
        try:
            reason = await self._see_off(process)
        except Exception:
            # Whatever it was, what this process has claimed must be given up.
            logger.exception("%s: watching its worker failed by a fault of this program", self.device)
            reason = "given up after a fault of this program, see the log"
        if self._is_stopping:
            return
        self._note_death(process.ending(reason))
        self._events.on_death(self, owner)

    def _note_wait(self, what: str) -> None:
        self.waits_for = what
        logger.info("%s: %s", self.device, what)

    async def _see_off(self, process: Process) -> str:
        """Pass its frames on until it is gone, and let go of it; returns why it was killed, if it was."""
        frames = asyncio.create_task(self._read_frames(process.reader))
        try:
            return await self._until_gone(process, frames)
        finally:
            frames.cancel()
            self._writer = None
            await process.close()

    async def _until_gone(self, process: Process, frames: asyncio.Task[str]) -> str:
        """Wait for the end of the process or of its frames, whichever comes first; then be sure of both."""
        exit_ = asyncio.create_task(process.wait())
        await asyncio.wait({exit_, frames}, return_when=asyncio.FIRST_COMPLETED)
        # When only the frames ended it may still be exiting by itself, with a status worth knowing.
        await asyncio.wait({exit_}, timeout=0.0 if frames.done() and frames.result() else 1.0)
        process.kill()
        await exit_
        # What it sent before it died still counts: a finished picture is not thrown away.
        await asyncio.wait({frames}, timeout=1.0)
        return frames.result() if frames.done() else ""

    async def _read_frames(self, reader: asyncio.StreamReader) -> str:
        """Pass frames on until there are no more; returns what was wrong, or nothing for a plain end."""
        frames = FrameReader()
        try:
            while True:
                data = await self._read_some(reader)
                if not data:
                    return ""
                for frame in frames.feed(data):
                    self._take(frame)
        except TimeoutError:
            return f"no sign of life for {self._silence_limit_s():g} s, killed"
        except ProtocolError as exc:
            return f"sent what is no frame ({exc}), killed"
        except OSError:
            # From another machine not only a ConnectionError: no route to it, or TLS that was cut in the middle.
            return ""

    async def _read_some(self, reader: asyncio.StreamReader) -> bytes:
        """What has arrived next. Raises: TimeoutError after too long a silence.

        It is looked at once more: when this process itself has stood still, the time is up before the bytes that
        arrived meanwhile have been read."""
        try:
            async with asyncio.timeout(self._silence_limit_s()):
                return await reader.read(READ_SIZE)
        except TimeoutError:
            async with asyncio.timeout(min(LAST_LOOK_S, self._silence_limit_s())):
                return await reader.read(READ_SIZE)

    def _silence_limit_s(self) -> float:
        is_drawing = self.is_ready and not self._is_loading
        return self._options.hang_s if is_drawing else max(self._options.hang_s, LOAD_HANG_S)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Log):
            level = logging.getLevelNamesMapping().get(frame.level.upper(), logging.INFO)
            logger.log(level, "%s: %s", self.device, frame.message)
            self._last_error_line = frame.message if level >= logging.ERROR else self._last_error_line
            return
        self._is_loading = isinstance(frame, Loading)
        if isinstance(frame, Loading):
            self.loading = frame
            if self.ready is None:
                self.state = WorkerState.LOADING
                return
        elif isinstance(frame, Ready):
            self._take_ready(frame)
        elif isinstance(frame, Heartbeat):
            self.heartbeat = frame
        elif isinstance(frame, Finished):
            self._failures = 0
        try:
            self._events.on_frame(self, frame)
        except Exception:
            # A fault in our own handling of one frame must not pass for a fault of the worker.
            logger.exception("%s: a %s frame was not understood", self.device, type(frame).__name__)

    def _take_ready(self, frame: Ready) -> None:
        self.state = WorkerState.RETIRING if self.is_retiring else WorkerState.READY
        self.ready, self._ready_at = frame, time.monotonic()
        logger.info("%s is ready: %s with %s", self.device, frame.device_name, ", ".join(sorted(self.models)))
        if self._is_to_sleep:  # told so while it was loading, or before its process died
            self.sleep()

    def _note_death(self, ending: Ending) -> None:
        if self.is_ready and time.monotonic() - self._ready_at >= STEADY_S:
            self._failures = 0
        # What it complained of explains an exit, but not a kill from outside.
        self.last_error = self._last_error_line if ending.is_exit and self._last_error_line else ending.how
        level = logging.INFO if self.is_retiring else logging.WARNING
        logger.log(level, "%s: worker process %s ended: %s (%s)", self.device, self.pid, ending.how, self.last_error)
        # A model that does not fit will not fit a moment later.
        is_in_vain = ending.is_broken or (ending.is_out_of_memory and not self.is_ready)
        self.state, self.ready, self.heartbeat, self.pid = WorkerState.RESTARTING, None, None, None
        self._failures = max(self._failures + 1, 20) if is_in_vain else self._failures + 1

    def describe(self) -> dict[str, Any]:
        """What /health says of it."""
        beat, loading = self.heartbeat, self.loading
        return {
            "device": self.device,
            "device_name": self.ready.device_name if self.ready else None,
            "state": str(self.state),
            "pid": self.pid,
            "host": self.host,
            "model": loading.model if loading else None,
            "stage": loading.stage if loading else self.waits_for,
            "fraction": 1.0 if self.is_ready else (loading.fraction if loading else 0.0),
            "models": sorted(self.models),
            "loaded": sorted(beat.loaded) if beat else [],
            "running": beat.running if beat else 0,
            "waiting": beat.waiting if beat else 0,
            "load_ms": beat.load_ms if beat else 0.0,
            "steps": beat.steps if beat else 0,
            "memory": dict(beat.memory) if beat else {},
            "tally": dict(beat.tally) if beat else {},
            "lookups": dict(beat.lookups) if beat else {},
            "restarts": self.restarts,
            "last_error": self.last_error,
        }


class Workers:
    """All workers of this node, in the order in which they were added.

    Args: devices: of those that are there from the start. transport: see Worker.
    """

    def __init__(
        self,
        node_name: str,
        devices: Sequence[str],
        options: WorkerOptions,
        events: WorkerEvents,
        transport: Transport | None = None,
    ) -> None:
        self._node_name = node_name
        self._options = options
        self._events = events
        self._transport = transport or ChildProcesses(options.argv, options.environment)
        self._numbers = count()
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._all = [self._new(device) for device in devices]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    @property
    def ready(self) -> list[Worker]:
        """Those that take requests now."""
        return [worker for worker in self._all if worker.is_ready]

    @property
    def staying(self) -> list[Worker]:
        """Those that do not retire."""
        return [worker for worker in self._all if not worker.is_retiring]

    def start(self) -> None:
        """Start every process; returns at once."""
        for worker in self._all:
            self._run(worker)

    def add(self, device: str) -> None:
        """One more, started at once."""
        worker = self._new(device)
        self._all.append(worker)
        self._run(worker)

    def retire(self, worker: Worker) -> None:
        """One fewer: it takes no more requests. One that was never ready has none, and ends at once."""
        is_idle = worker.ready is None
        worker.retire()
        if is_idle:
            self._tasks[worker].cancel()

    def named(self, device: str | None) -> list[Worker]:
        """Those of a device; all for None."""
        return [worker for worker in self._all if device in (None, worker.device)]

    def start_no_other(self) -> None:
        """The node is about to stop: a process that ends is not replaced."""
        for worker in self._all:
            worker.start_no_other()

    async def stop(self) -> None:
        """End every process: they are asked, and killed if they are still there after a moment."""
        for worker in self._all:
            worker.stop()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()

    def _new(self, device: str) -> Worker:
        name = f"{self._node_name}/{next(self._numbers)}"
        return Worker(name, device, self._options, self._events, self._transport)

    def _run(self, worker: Worker) -> None:
        task = self._tasks[worker] = asyncio.create_task(worker.run(), name=f"worker-{worker.device}")
        task.add_done_callback(lambda _: self._forget(worker))

    def _forget(self, worker: Worker) -> None:
        if worker.is_retiring:
            del self._tasks[worker]
            self._all.remove(worker)
