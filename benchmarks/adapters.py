"""What LoRAs cost a step: the same packed forward without any, with one for all rows, and with another for every row,
the last also as servers draw it that split their batches by adapter.

    python -m benchmarks.adapters --model random:FLUX.1-dev --device cuda:0 --pack 1024x1024*4
    python -m benchmarks.adapters --model random:FLUX.1-dev --blocks 1,2 --pack 256x256*2 --text-tokens 128   # a CPU
    python -m benchmarks.adapters --model flux-shapes --pack 512x512*4

Every adapter has matrices for every linear of the blocks but modulation, which is worked out at admission. The cases
take turns, so that a busy machine burdens all alike. On a CPU the clock is the processor time of this process.
`--blocks` draws through fewer blocks of the same width, where the whole model would not fit or end. The last line is
the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.common import emit, environment
from models.accelerator import Accelerator, open_accelerator, pick_dtype
from models.adapters.reading import AdapterWeights, LowRank
from models.architectures import ARCHITECTURES
from models.arguments import resolve
from models.fusion import fuse
from models.loading import load, silence_libraries
from models.quantization import quantize
from models.tuning import AUTO
from pipelines.adapters.adapter import FittedAdapter, Uses, fit, targets
from pipelines.adapters.linears import with_adapters
from pipelines.families.flux1.packed import attention_shape, modulation_rows, packed_forward
from pipelines.families.flux1.sampling import position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import choose_compute
from server.bench.report import table

CELL = 16
"""Pixels of a token's side, as in FLUX.1."""


def make_transformer(
    arguments: argparse.Namespace, accelerator: Accelerator, dtype: torch.dtype
) -> FluxTransformer2DModel:
    """The model's transformer, or with `--blocks` a shorter random one of its dimensions, as it is served."""
    spec = resolve(arguments.model)
    if arguments.blocks and spec.source in ARCHITECTURES:
        doubles, singles = (int(count) for count in arguments.blocks.split(","))
        config = ARCHITECTURES[spec.source].transformer | {"num_layers": doubles, "num_single_layers": singles}
        with torch.device(accelerator.device):
            transformer = FluxTransformer2DModel(**config).to(dtype).eval().requires_grad_(False)
        tuning = AUTO.resolved(accelerator.kind)
        fuse(transformer, qkv=bool(tuning.fuse_qkv), mlp=bool(tuning.fuse_mlp))
    else:
        transformer = load(spec, accelerator, dtype, tuning=AUTO).transformer
    quantize(transformer, arguments.quantization, accelerator)
    return transformer


def make_adapter(transformer: FluxTransformer2DModel, rank: int, seed: int, dtype: torch.dtype) -> FittedAdapter:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    parts = {
        name: LowRank(noise(rank, target.inputs), noise(target.columns, rank))
        for name, target in targets(transformer).items()
        if "transformer_blocks." in name and ".norm" not in name
    }
    return fit(AdapterWeights(parts, {}), transformer, torch.nn.Module(), transformer.device, dtype)


def make_forward(
    transformer: FluxTransformer2DModel, arguments: argparse.Namespace, accelerator: Accelerator, dtype: torch.dtype
) -> Callable[[FluxTransformer2DModel, Sequence[Uses]], Tensor]:
    """One step over equal rows by (transformer, adapters of each row)."""
    size = arguments.pack.partition("*")[0]
    width, height = (int(side) // CELL for side in size.split("x"))
    tokens, text_tokens, config = width * height, arguments.text_tokens, transformer.config
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(accelerator.device, dtype)

    cos, sin = transformer.pos_embed(position_ids(text_tokens, height, width, dtype).to(accelerator.device))
    rope = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]
    latents = noise(tokens, config.in_channels)
    text = transformer.context_embedder(noise(text_tokens, config.joint_attention_dim))
    modulation = modulation_rows(transformer, noise(1, config.attention_head_dim * config.num_attention_heads))
    compute = choose_compute(AUTO.resolved(accelerator.kind), *attention_shape(transformer), dtype, accelerator)

    @lru_cache
    def inputs(rows: int) -> tuple[PackLayout, Tensor, Tensor, Tensor]:
        layout = PackLayout((text_tokens,) * rows, (tokens,) * rows, rope.repeat(rows, 1, 1))
        return layout, latents.repeat(rows, 1), text.repeat(rows, 1), modulation.repeat(rows, 1)

    def forward(model: FluxTransformer2DModel, uses: Sequence[Uses]) -> Tensor:
        layout, image, prompt, vectors = inputs(len(uses))
        own = replace(layout, uses=tuple(uses)) if any(uses) else layout
        return packed_forward(model, own, image, prompt, vectors, compute)

    return forward


def timed_ms(work: Callable[[], object], accelerator: Accelerator) -> float:
    start, began = accelerator.mark(), time.process_time()
    work()
    end = accelerator.mark()
    end.wait()
    on_device = end.elapsed_ms(start)
    return (time.process_time() - began) * 1000 if on_device is None else on_device


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    accelerator = open_accelerator(arguments.device)
    dtype = pick_dtype(arguments.dtype, accelerator)
    transformer = make_transformer(arguments, accelerator, dtype)
    twin = with_adapters(transformer)
    forward = make_forward(transformer, arguments, accelerator, dtype)
    rows = int(arguments.pack.partition("*")[2] or 1)
    adapters = [make_adapter(transformer, arguments.rank, seed, dtype) for seed in range(rows)]
    each: list[Uses] = [((adapter, 0.8),) for adapter in adapters]
    cases: dict[str, Callable[[], object]] = {
        "none": lambda: forward(transformer, [()] * rows),
        "one for all rows": lambda: forward(twin, [each[0]] * rows),
        "another for every row": lambda: forward(twin, each),
        "one row of the pack": lambda: forward(twin, [each[0], *([()] * (rows - 1))]),
        "another for every row, a step for each": lambda: [forward(twin, [own]) for own in each],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(arguments.repeats + 1):
        for name, work in cases.items():
            ms = timed_ms(work, accelerator)
            if round_:  # the first one warms up
                times[name].append(ms)
    # Rounds are compared one by one: what slows the machine for a while slows all cases of a round.
    ratios = {name: median(a / b for a, b in zip(found, times["none"], strict=True)) for name, found in times.items()}
    return {
        "model": arguments.model,
        "blocks": arguments.blocks,
        "pack": arguments.pack,
        "text_tokens": arguments.text_tokens,
        "rank": arguments.rank,
        "adapter_mb": round(adapters[0].nbytes / 1e6, 1),
        "quantization": arguments.quantization,
        "dtype": str(dtype).removeprefix("torch."),
        "cases": {name: {"step_ms": median(found), "ratio": ratios[name]} for name, found in times.items()},
    } | environment(accelerator.name)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--blocks", default="", help="doubles,singles of a shorter model; random weights only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--pack", default="512x512*4", help="WIDTHxHEIGHT*ROWS in a model of 16 pixels a token")
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


def main() -> None:
    silence_libraries()
    report = measure(parse())
    rows = [
        {"adapters": name, "step ms": f"{case['step_ms']:.1f}", "of a step without": f"{case['ratio']:.3f}"}
        for name, case in report["cases"].items()
    ]
    print(table(rows))
    emit(report)


if __name__ == "__main__":
    main()
