"""The engine alone, in a worker process of its own as the server runs it: no HTTP, no store, no picture files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count

from models.registry import ModelSpec
from pipelines.protocol.frames import Failed, Finished, Frame, Heartbeat, Note, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.scenarios import Ask
from server.bench.target import AskError, BenchError, OnLoading, TargetFacts
from server.workers.process import WORKER_COMMAND, Worker, WorkerOptions, Workers

_POLL_S = 0.1


class EngineTarget:
    """Requests go straight to a worker as frames. Pictures come back as pixels and are dropped."""

    def __init__(
        self,
        spec: ModelSpec,
        model: str,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        tuning: str = "",
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._spec = spec
        self._workers = Workers(
            "bench", [device], WorkerOptions((model,), dtype, quantization, tuning=tuning, command=command), self
        )
        (self._worker,) = self._workers
        self._numbers = count()
        self._waiting: dict[str, asyncio.Future[dict[str, float]]] = {}
        self._memory: dict[str, int] = {}
        self._notes: dict[str, None] = {}
        self._error: str | None = None

    async def open(self, on_loading: OnLoading) -> TargetFacts:
        self._workers.start()
        while (ready := self._worker.ready) is None:
            if self._error is not None:
                raise BenchError(self._error)
            if (loading := self._worker.loading) is not None:
                on_loading(loading.stage, loading.fraction)
            await asyncio.sleep(_POLL_S)
        return TargetFacts(ready.device, ready.device_name, ready.models[0]["dtype"], is_local=True)

    async def generate(self, ask: Ask) -> dict[str, float]:
        if self._error is not None:
            raise BenchError(self._error)
        name = str(next(self._numbers))
        future: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        self._worker.send(Submit(name, 1, self._params(ask).to_dict()))
        return await future

    async def memory(self) -> dict[str, int]:
        return dict(self._memory)

    def notes(self) -> list[str]:
        return list(self._notes)

    async def close(self) -> None:
        await self._workers.stop()

    def on_frame(self, worker: Worker, frame: Frame) -> None:
        """See WorkerEvents."""
        if isinstance(frame, Heartbeat):
            self._memory |= {name: max(size, self._memory.get(name, 0)) for name, size in frame.memory.items()}
        elif isinstance(frame, Note):
            self._notes[frame.message] = None
        elif isinstance(frame, Finished):
            self._waiting.pop(frame.job_id).set_result(frame.timings)
        elif isinstance(frame, Failed):
            self._waiting.pop(frame.job_id).set_exception(AskError(frame.message))

    def on_death(self, worker: Worker, owner: str) -> None:
        """See WorkerEvents. What a dead worker leaves is no measurement, so nothing is run again."""
        self._error = f"the worker process ended: {worker.last_error}"
        for future in self._waiting.values():
            future.set_exception(BenchError(self._error))
        self._waiting.clear()

    def _params(self, ask: Ask) -> GenerationParams:
        """Without the safety checker: not every model has one, and it is not counted."""
        return GenerationParams(
            model=self._spec.name,
            prompt=ask.prompt,
            width=ask.width,
            height=ask.height,
            num_inference_steps=ask.steps,
            guidance_scale=ask.guidance,
            seed=ask.seed,
            max_sequence_length=self._spec.max_sequence_length,
            acceleration=ask.acceleration,
        )
