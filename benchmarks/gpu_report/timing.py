"""How long work takes: for the host until it returns, for the device until it is done; and kernel by kernel."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from models.accelerator import Accelerator
from pipelines.ops.attention_choice import measure_ms

CLASSES: Mapping[str, str] = {
    "attention": r"sdpa|flash|fmha",
    "norm and rotation": r"norm_rotate",
    "norm and modulation": r"norm_modulate|layer_norm|GroupNorm|RowwiseMoments",
    "gate and residual": r"gate_add",
    "quantise": r"quant|float8|clamp|abs|maxnan|DivFunctor",
    "activation": r"gelu|silu|sigmoid",
    "convolutions": r"conv|fprop|nchwToNhwc|nhwcToNchw",
    "matrix products": r"nvjet|gemm|cutlass|cublas|splitK",
    "copies": r"Cat|copy|Memcpy|Memset",
}
"""Kernels of a kind, by what their names have; the first that fits counts."""


def device_ms(work: Callable[[], object], accelerator: Accelerator, repeats: int = 5) -> float:
    """Median of several runs, warm; by the device's clock where it has one."""
    work()
    return round(measure_ms(work, accelerator, repeats), 4)


def both_ms(work: Callable[[], object], accelerator: Accelerator, repeats: int = 5) -> dict[str, float]:
    """`host_ms` until the call returns, `done_ms` until the device is done; medians, each from an idle device."""
    host, done = [], []
    work()
    for _ in range(repeats):
        accelerator.mark().wait()
        began = time.perf_counter()
        work()
        host.append((time.perf_counter() - began) * 1e3)
        _idle(accelerator)
        done.append((time.perf_counter() - began) * 1e3)
    return {"host_ms": round(median(host), 3), "done_ms": round(median(done), 3)}


def _idle(accelerator: Accelerator) -> None:
    """Wait for all streams of the device."""
    if accelerator.kind == "cuda":
        torch.cuda.synchronize(accelerator.device)


def profiled(work: Callable[[], object], accelerator: Accelerator, table: Path) -> dict[str, Any]:
    """What one call runs on the device, kernel by kernel. Args: table: file for torch's own table."""
    for _ in range(3):
        work()
    _idle(accelerator)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if accelerator.kind == "cuda" else [])]
    with profile(activities=kinds) as record:
        work()
        _idle(accelerator)
    events = [event for event in record.events() or () if str(event.device_type).endswith("CUDA")]
    order = "self_cuda_time_total" if events else "self_cpu_time_total"
    table.write_text(record.key_averages().table(sort_by=order, row_limit=80))
    return kernels([(event.name, event.time_range.start, event.time_range.end) for event in events])


def kernels(spans: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Figures of one call from its kernels: name, start and end in microseconds."""
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    classes: dict[str, float] = defaultdict(float)
    for name, start, end in spans:
        spent[name] += (end - start) / 1e3
        calls[name] += 1
        classes[class_of(name)] += (end - start) / 1e3
    length = max((end for *_, end in spans), default=0.0) - min((start for _, start, _ in spans), default=0.0)
    return {
        "device_busy_ms": round(sum(spent.values()), 3),
        "first_to_last_ms": round(length / 1e3, 3),
        "kernels": len(spans),
        "classes_ms": {name: round(ms, 3) for name, ms in sorted(classes.items(), key=lambda item: -item[1])},
        "top": [
            {"kernel": name[:160], "ms": round(spent[name], 3), "calls": calls[name]}
            for name in sorted(spent, key=lambda name: -spent[name])[:40]
        ],
    }


def class_of(kernel: str) -> str:
    """Which of `CLASSES` a kernel belongs to, or `other`."""
    return next((name for name, has in CLASSES.items() if re.search(has, kernel, re.IGNORECASE)), "other")
