"""Training on a GPU: nothing of a step waits for the host.

Worker processes think up what to draw and send it as numbers; the device draws it, keeps a store of rows for every
picture size, and every step takes rows from a store by chance. After two ordinary steps of a size its whole step
(rows, loss, gradients, update, average) is recorded once and replayed with one launch: a model this small would
otherwise spend its time on launching a thousand kernels a step.
"""

import multiprocessing
import os
import pickle
import queue
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from models.shapes.flow import Batch
from models.shapes.precision import half_precision, multiplies_bfloat16
from models.shapes.text import SERVED_LENGTH, Encoders

if TYPE_CHECKING:
    from models.shapes.train_flow import FlowTraining

Size = tuple[int, int]  # width, height in pixels
Key = tuple[Size, int]  # and T5 tokens
CHUNK = 512  # rows that a worker sends at once
WARM = 2  # ordinary steps of a kind before it is recorded
AHEAD = 8  # steps that the host may be ahead of the device
_WAITING = 6  # chunks that workers finish ahead


class Drawable(Protocol):
    """What to draw, as numbers on the host."""

    def shown(self, encoders: Encoders) -> Batch:
        """The batch, drawn on the encoders' device."""
        ...


# encoders (of which only the tokenizers are used), random numbers, picture size, T5 tokens, rows
Plan = Callable[[Encoders, random.Random, Size, int, int], Drawable]
SERVED_KEYS: Mapping[Key, float] = {
    ((512, 512), SERVED_LENGTH): 0.5,
    ((512, 512), 64): 0.04,
    ((512, 512), 512): 0.03,
    ((384, 384), SERVED_LENGTH): 0.05,
    ((448, 576), SERVED_LENGTH): 0.05,
    ((576, 448), SERVED_LENGTH): 0.05,
    ((1024, 768), SERVED_LENGTH): 0.14,
    ((768, 1024), SERVED_LENGTH): 0.04,
    ((1024, 576), SERVED_LENGTH): 0.04,
    ((576, 1024), SERVED_LENGTH): 0.03,
    ((1024, 1024), SERVED_LENGTH): 0.03,
}


class Feed:
    """Processes that plan pictures; start them before anything touches the GPU, since they are forked."""

    def __init__(
        self, plan: Plan, encoders: Encoders, workers: int, *, keys: Mapping[Key, float] = SERVED_KEYS, seed: int = 0
    ) -> None:
        self.keys = keys
        context = multiprocessing.get_context("fork")
        self._chunks: multiprocessing.Queue[bytes] = context.Queue(_WAITING)
        self._workers = [
            context.Process(target=self._work, args=(plan, encoders, seed + i, os.getpid()), daemon=True)
            for i in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def _work(self, plan: Plan, encoders: Encoders, seed: int, parent: int) -> None:
        self._chunks.cancel_join_thread()  # what nobody takes must not keep the process
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        rng = random.Random(f"feed {seed}")
        while True:
            size, length = rng.choices(list(self.keys), list(self.keys.values()))[0]
            rows = max(CHUNK * SERVED_LENGTH // length, 2)
            chunk = pickle.dumps((length, plan(encoders, rng, size, length, rows)))
            while os.getppid() == parent:
                try:
                    self._chunks.put(chunk, timeout=1)
                    break
                except queue.Full:
                    continue
            else:
                return

    def take(self, *, wait: float = 0.0) -> tuple[int, Drawable] | None:
        """A text length and what to draw with it, or None if nothing comes within `wait` seconds."""
        try:
            chunk = self._chunks.get(timeout=wait) if wait else self._chunks.get_nowait()
        except queue.Empty:
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("all processes that draw for this training have ended") from None
            return None
        told: tuple[int, Drawable] = pickle.loads(chunk)  # our own processes wrote it
        return told

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()


class Store:
    """Rows of one kind on the device: the newest `capacity`, in half precision where it is multiplied."""

    def __init__(self, capacity: int = 16 * CHUNK) -> None:
        self._capacity, self._next, self.filled = capacity, 0, 0
        self._like: Batch | None = None
        self._columns: dict[str, Tensor] = {}
        self._count = torch.zeros(())

    def add(self, batch: Batch) -> None:
        """Put the rows of a batch in, over the oldest."""
        columns = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
        rows = len(batch.latents)
        if self._like is None:
            self._like = replace(batch)
            self._count = torch.zeros((), device=batch.latents.device)
            kept = torch.bfloat16 if multiplies_bfloat16(batch.latents.device) else torch.float32
            self._columns = {
                name: torch.empty(
                    (self._capacity, *column.shape[1:]),
                    dtype=kept if column.is_floating_point() else column.dtype,
                    device=column.device,
                )
                for name, column in columns.items()
            }
        start = self._next if self._next + rows <= self._capacity else 0
        for name, column in columns.items():
            self._columns[name][start : start + rows].copy_(column)
        self._next = start + rows
        self.filled = max(self.filled, self._next)
        self._count.fill_(self.filled)

    def sample(self, count: int) -> Batch:
        """Rows by chance; nothing here waits for the device."""
        assert self._like is not None
        chosen = (torch.rand(count, device=self._count.device) * self._count).long()
        chosen = torch.minimum(chosen, (self._count - 1).long())
        sampled = replace(self._like)
        for name, column in self._columns.items():
            setattr(sampled, name, column[chosen])
        return sampled


@dataclass(frozen=True)
class Fast:
    """How a training is fed from other processes, and whether its steps are recorded."""

    feed: Feed
    record: bool = True


class Steps:
    """The steps of a training that is fed."""

    def __init__(self, training: "FlowTraining", fast: Fast) -> None:
        self._training, self._feed = training, fast.feed
        # cuDNN's attention reads what is not its own on the way back (torch 2.11 with CUDA 13, H200).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self._record = fast.record and training.device.type == "cuda"
        self._stores: dict[Key, Store] = {key: Store() for key in fast.feed.keys}
        self._warmed: dict[tuple[Key, int], int] = {}
        self._graphs: dict[tuple[Key, int], torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle() if self._record else None
        self._stream = torch.cuda.Stream() if self._record else None
        self._loss = torch.zeros((), device=training.device)
        self._marks: list[torch.cuda.Event] = []
        self._rng = random.Random(training.rng.random())
        self._fed = False

    def step(self, done: float) -> Tensor:
        """One update; returns its loss, which may not be computed yet."""
        training = self._training
        training.average.updates = max(training.average.updates, 10**6)  # so that its weight is the same in every step
        key = self._choose()
        phase = training.phase(done)
        training.optimisers.set_scale(training.scale(done))
        self._run(key, phase)
        self._pace()
        return self._loss.clone()

    def _choose(self) -> Key:
        """Take in what has come, then a kind of picture by its weight."""
        ready: list[Key] = []
        while not ready:
            self._take_in(wait=0.0 if self._fed else 1.0)
            ready = [key for key, store in self._stores.items() if store.filled]
        self._fed = True
        return self._rng.choices(ready, [self._feed.keys[key] for key in ready])[0]

    def _take_in(self, wait: float) -> None:
        told = self._feed.take(wait=wait)
        if told is not None:
            length, drawable = told
            batch = drawable.shown(self._training.encoders)
            self._stores[(batch.width, batch.height), length].add(batch)

    def _run(self, key: Key, phase: int) -> None:
        kind = (key, phase)
        if kind in self._graphs:
            self._graphs[kind].replay()
        elif not self._record:
            self._compute(key, phase)
        elif self._warmed.get(kind, 0) < WARM:
            self._warmed[kind] = self._warmed.get(kind, 0) + 1
            self._aside(key, phase)
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                self._compute(key, phase)
            self._graphs[kind] = graph
            graph.replay()

    def _aside(self, key: Key, phase: int) -> None:
        """A step on another stream, as recording wants it before."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._compute(key, phase)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _compute(self, key: Key, phase: int) -> None:
        training, (size, length) = self._training, key
        rows = max(2, training.tokens // (training.tokens_a_row(size) + length - SERVED_LENGTH))
        batch = self._stores[key].sample(rows)
        with half_precision(training.device):
            loss = training.loss_of(batch, phase)
        loss.backward()
        self._loss.copy_(loss.detach())
        training.optimisers.update()
        training.average.update(training.model)

    def _pace(self) -> None:
        """Keep the host a few steps ahead of the device, so that the clock tells how far the training is."""
        if self._training.device.type != "cuda":
            return
        mark = torch.cuda.Event(blocking=True)
        mark.record()
        self._marks.append(mark)
        if len(self._marks) > AHEAD:
            self._marks.pop(0).synchronize()
