"""What a step costs beside the model's forward."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine.systems import Clock
from models.accelerator import Accelerator
from pipelines.engine.engine import Engine
from pipelines.engine.request import Row
from pipelines.engine.runner import Runner
from pipelines.protocol.frames import Cancel, Submit
from pipelines.protocol.params import GenerationParams
from server.bench.figures import percentile


def overhead(runner: Runner, accelerator: Accelerator, params: GenerationParams) -> dict[str, float]:
    """Share of a lone request's steps that is not the model's forward, and steps run after a cancel."""
    forward_ms: list[float] = []
    denoise = runner.denoise

    def timed(rows: Sequence[Row]) -> None:
        began = Clock.source()
        denoise(rows)
        accelerator.mark().wait()
        forward_ms.append((Clock.source() - began) * 1e3)

    runner.denoise = timed  # type: ignore[method-assign]
    try:
        engine = Engine(lambda name: runner, accelerator)
        engine.add_request(Submit("overhead", 0, params.to_dict()))
        whole_ms: list[float] = []
        while len(forward_ms) < params.num_inference_steps:
            began, before = Clock.source(), len(forward_ms)
            engine.step()
            if before and len(forward_ms) > before:
                whole_ms.append((Clock.source() - began) * 1e3)
        _run_out(engine)
        engine.add_request(Submit("cancelled", 0, params.to_dict()))
        engine.step()
        engine.step()
        engine.abort(Cancel("cancelled", 0))
        count = len(forward_ms)
        _run_out(engine)
    finally:
        runner.denoise = denoise  # type: ignore[method-assign]
    step_ms = percentile(forward_ms, 0.5)
    outside = [whole - inner for whole, inner in zip(whole_ms, forward_ms[1:], strict=False)]
    return {
        "forward_ms": step_ms,
        "outside_forward_ms": percentile(outside, 0.5),
        "outside_share": percentile(outside, 0.5) / step_ms,
        "steps_after_cancel": float(len(forward_ms) - count),
    }


def _run_out(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
