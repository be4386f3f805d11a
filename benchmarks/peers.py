"""What somebody would run instead of fluxserve, on the same weights in the same run: one table, ratios to stock.

    python -m benchmarks.peers --model random:FLUX.1-dev --device cuda:0 --sizes 1024x1024 512x512 --steps 28 4

A peer is diffusers' FluxPipeline with something changed, on a copy of the transformer and the VAE, so that no peer sees
another's changes. Alone: median seconds of one request after another. Under load: images a second of equal requests
from so many clients at once; what runs one at a time does as many as alone. A peer that cannot run here says why; one
that breaks says how, and the others go on. The last line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import attention_backend

from benchmarks.common import emit, environment
from benchmarks.copies import set_aside, with_own_weights
from benchmarks.engine.load import Job
from benchmarks.engine.systems import WINDOW_S, Ours, Source, Stock
from models.accelerator import Accelerator, open_accelerator, pick_dtype
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load, silence_libraries, tune
from models.quantization import is_insensitive, quantize
from models.tuning import AUTO
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.params import GenerationParams
from server.bench.report import table

System = Stock | Ours
_SEEDS = numbers()


@dataclass(frozen=True, slots=True)
class Peer:
    """One row.

    Args:
        build: makes it, on weights it may change.
        missing: why it cannot run here; None if it can.
        is_exact: the same arithmetic as stock up to the order of rounding.
        batches: whether requests at once are drawn together.
        acceleration: what its requests ask for.
        note: what a reader should know.
    """

    name: str
    build: Callable[[FluxComponents, Accelerator], System]
    missing: Callable[[Accelerator], str | None] = lambda accelerator: None
    is_exact: bool = True
    batches: bool = False
    acceleration: str = "none"
    note: str = ""


def needs(*packages: str, gpu: bool = True) -> Callable[[Accelerator], str | None]:
    """What must be here."""

    def missing(accelerator: Accelerator) -> str | None:
        if gpu and accelerator.kind != "cuda":
            return "needs an NVIDIA GPU"
        absent = [package for package in packages if find_spec(package) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return missing


def stock(components: FluxComponents, accelerator: Accelerator) -> Stock:
    return Stock(components)


def batching(components: FluxComponents, accelerator: Accelerator) -> Stock:
    return Stock(components, WINDOW_S)


def engine(components: FluxComponents, accelerator: Accelerator) -> Ours:
    """As it is served on this kind of device."""
    tune(components, AUTO.resolved(accelerator.kind), accelerator)
    return Ours(FluxRunner(components, accelerator, AUTO), accelerator)


def engine_float8(components: FluxComponents, accelerator: Accelerator) -> Ours:
    tune(components, AUTO.resolved(accelerator.kind), accelerator)
    quantize(components.transformer, "fp8", accelerator)
    return Ours(FluxRunner(components, accelerator, AUTO), accelerator)


def cudnn(components: FluxComponents, accelerator: Accelerator) -> Stock:
    system = Stock(components)
    system.pipeline.transformer.set_attention_backend("_native_cudnn")
    return system


def compiled(components: FluxComponents, accelerator: Accelerator) -> Stock:
    system = Stock(components)
    system.pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    return system


def compiled_cudnn(components: FluxComponents, accelerator: Accelerator) -> Stock:
    system = cudnn(components, accelerator)
    system.pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    return system


def flux_fast(components: FluxComponents, accelerator: Accelerator) -> Stock:
    """The recipe's lossless parts: fused QKV, channels_last, FA3 attention where it is here, tuned compilation.

    Source: huggingface/flux-fast, utils/pipeline_utils.py. Its AOT export is left out: it saves start-up, not steps.
    """
    flags = torch._inductor.config
    flags.conv_1x1_as_mm = True
    flags.epilogue_fusion = False
    flags.coordinate_descent_tuning = True
    flags.coordinate_descent_check_all_directions = True
    system = Stock(components)
    transformer, vae = system.pipeline.transformer, system.pipeline.vae
    transformer.fuse_qkv_projections()
    vae.fuse_qkv_projections()
    transformer.set_attention_backend("_flash_3" if offer_flash_attention_3() else "_native_cudnn")
    for module in (transformer, vae):
        module.to(memory_format=torch.channels_last)
    transformer.compile(mode="max-autotune", fullgraph=True)
    vae.decode = torch.compile(vae.decode, mode="max-autotune", fullgraph=True)
    return system


def offer_flash_attention_3() -> bool:
    """Whether diffusers can use FlashAttention 3; the wheel that PyPI has (fa3-fwd) is told it under its own name."""
    if not attention_dispatch._CAN_USE_FLASH_ATTN_3 and find_spec("fa3_fwd_interface"):
        attention_dispatch.flash_attn_3_func = import_module("fa3_fwd_interface").flash_attn_func
        attention_dispatch._CAN_USE_FLASH_ATTN_3 = True
    return bool(attention_dispatch._CAN_USE_FLASH_ATTN_3)


def flux_fast_fp8(components: FluxComponents, accelerator: Accelerator) -> Stock:
    """With float8 linears, scaled per row."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    def is_chosen(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and is_insensitive(name)

    components.transformer.fuse_qkv_projections()  # before: float8 weights cannot be joined
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(components.transformer, config, filter_fn=is_chosen)
    return flux_fast(components, accelerator)


def cache_dit(components: FluxComponents, accelerator: Accelerator) -> Stock:
    """DBCache as its project reports it for FLUX: the first block decides, with the usual threshold."""
    system, library = Stock(components), import_module("cache_dit")
    library.enable_cache(system.pipeline, cache_config=library.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0))
    return system


GPU = needs()
_HAS_FA3 = any(find_spec(name) for name in ("flash_attn_interface", "fa3_fwd_interface"))
_FLUX_FAST = f"fused QKV, channels_last, max-autotune, {'FlashAttention 3' if _HAS_FA3 else 'cuDNN attention'}"
PEERS = (
    Peer("stock", stock, note="FluxPipeline, eager, one at a time"),
    Peer("request batching", batching, batches=True, note="equal requests within 50 ms, at most 8, in one call"),
    Peer("cuDNN attention", cudnn, GPU),
    Peer("compile_repeated_blocks", compiled, GPU),
    Peer("compile_repeated_blocks + cuDNN", compiled_cudnn, GPU),
    Peer("fluxserve engine", engine, batches=True),
    Peer("fluxserve engine, float8", engine_float8, GPU, is_exact=False, batches=True),
    Peer(
        "fluxserve engine, float8 and caching",
        engine_float8,
        GPU,
        is_exact=False,
        batches=True,
        acceleration="high",
        note="hits on random weights mean nothing",
    ),
    Peer("flux-fast, exact parts", flux_fast, GPU, note=_FLUX_FAST),
    Peer("flux-fast, fp8", flux_fast_fp8, needs("torchao"), is_exact=False, note=f"{_FLUX_FAST}, float8 by row"),
    # Last: it patches classes, not only its own pipeline.
    Peer(
        "cache-dit",
        cache_dit,
        needs("cache_dit", gpu=False),
        is_exact=False,
        note="hits on random weights mean nothing",
    ),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of a column asks for."""

    width: int
    height: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}, {self.steps} steps"

    def jobs(self, model: str, count: int, max_sequence_length: int, acceleration: str = "none") -> list[Job]:
        return [
            Job(
                GenerationParams(
                    model,
                    f"a red circle on a blue ground, number {seed}",  # no peer may keep what it encoded before
                    self.width,
                    self.height,
                    self.steps,
                    3.5,
                    seed,
                    max_sequence_length=max_sequence_length,
                    acceleration=acceleration,
                )
            )
            for seed in islice(_SEEDS, count)
        ]


def measure_peer(
    peer: Peer, components: FluxComponents, accelerator: Accelerator, shapes: Sequence[Shape], settings: Settings
) -> dict[str, Any]:
    """One row: figures by shape, or why there are none."""
    row: dict[str, Any] = {"peer": peer.name, "exact": peer.is_exact, "note": peer.note, "cells": {}}
    if (reason := peer.missing(accelerator)) is not None:
        return row | {"why_not": reason}
    spec = components.spec
    try:
        # A model's set_attention_backend changes the default of all models, too; this puts it back.
        with attention_backend("native"):
            system = peer.build(with_own_weights(components, accelerator), accelerator)
            for shape in shapes:

                def jobs(count: int, shape: Shape = shape) -> list[Job]:
                    return shape.jobs(spec.name, count, spec.max_sequence_length, peer.acceleration)

                row["cells"][shape.name] = _figures(peer, system, jobs, settings)
    except Exception as exc:
        # Whatever breaks one peer, an optional library's own errors too, the others are still worth their time.
        row["why_not"] = f"broke: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
    return row


@dataclass(frozen=True, slots=True)
class Settings:
    """How often. `clients` ask at once under load, `count` times in all each."""

    count: int
    warmup: int
    clients: int


def _figures(peer: Peer, system: System, jobs: Callable[[int], list[Job]], settings: Settings) -> dict[str, float]:
    """Alone, then under load; each warm."""
    if settings.warmup:
        system.run(Source(jobs(settings.warmup), 1))
    alone = median(job.latency for job in system.run(Source(jobs(settings.count), 1)).jobs)
    if not peer.batches:
        return {"p50_s": alone, "images_per_s": 1 / alone}
    if settings.warmup:
        system.run(Source(jobs(settings.clients), settings.clients))
    crowd = system.run(Source(jobs(settings.count * settings.clients), settings.clients))
    return {"p50_s": alone, "images_per_s": len(crowd.jobs) / crowd.span_s}


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Beside every figure, how many times as fast as stock's."""
    base = rows[0]["cells"]
    for row in rows:
        for name, cell in row["cells"].items():
            if name in base:
                cell["speedup"] = base[name]["p50_s"] / cell["p50_s"]
                cell["throughput_ratio"] = cell["images_per_s"] / base[name]["images_per_s"]
    return rows


def markdown(rows: Sequence[dict[str, Any]], shapes: Sequence[Shape], clients: int) -> str:
    """The table; a peer without figures says why."""
    lines = []
    for row in rows:
        line = {"peer": row["peer"] + ("" if row["exact"] else " (approximate)")}
        for shape in shapes:
            cell = row["cells"].get(shape.name, {})
            crowd = f"{shape.name}, {clients} clients"
            line[f"{shape.name}: s"] = f"{cell['p50_s']:.3f}" if cell else ""
            line[f"{shape.name}: x stock"] = f"{cell['speedup']:.2f}" if "speedup" in cell else ""
            line[f"{crowd}: images/s"] = f"{cell['images_per_s']:.4g}" if cell else ""
            line[f"{crowd}: x stock"] = f"{cell['throughput_ratio']:.2f}" if "throughput_ratio" in cell else ""
        lines.append(line | {"note": row.get("why_not") or row["note"]})
    return table(lines)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator))
    shapes = [Shape(width, height, steps) for width, height in arguments.sizes for steps in arguments.steps]
    components = set_aside(components, accelerator, "transformer", "vae")
    settings = Settings(arguments.count, arguments.warmup, arguments.clients)
    rows = []
    for peer in PEERS:
        if arguments.peers and peer.name not in ("stock", *arguments.peers):
            continue
        rows.append(measure_peer(peer, components, accelerator, shapes, settings))
        print(f"{peer.name}: {rows[-1].get('why_not', 'measured')}", flush=True)
        gc.collect()
        accelerator.release_cached_memory()
    report = {
        "benchmark": "peers",
        "model": spec.name,
        "dtype": str(components.dtype),
        "clients": arguments.clients,
        "environment": environment(accelerator.name),
        "rows": with_ratios(rows),
    }
    print(f"\n{markdown(report['rows'], shapes, arguments.clients)}\n")
    return report


def size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(1024, 1024)], metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, nargs="+", default=[28])
    parser.add_argument("--count", type=int, default=5, help="requests alone; under load as many for every client")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--peers", nargs="+", choices=[peer.name for peer in PEERS], help="stock and these; default: all"
    )
    parser.add_argument("--out", type=Path, help="also write the report here")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    silence_libraries()
    torch.set_grad_enabled(False)
    report = measure(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    emit(report)


if __name__ == "__main__":
    main()
