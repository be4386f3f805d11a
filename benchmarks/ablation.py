"""What each switch for speed brings and what it costs in accuracy: off, alone, all on, all on but one, in one run.

    python -m benchmarks.ablation --model random:FLUX.1-dev --device cuda:0 --packs 1024x1024 512x512 512x512*4

A step is one packed forward (median of several, after a warm-up); `error` is its distance from the same forward in
float32 over the same weights and inputs, as a share of the result's size (root mean square over all values), largest
over the packs. Decoding is of the first pack's first picture. What was saved before there were switches (modulation,
rotary embedding and prompt embedding, kept over a request's steps) is measured the other way round: what a step takes
without it. A row that cannot run says why. The last line is the report as JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in pipelines/worker/__main__.py, before torch is loaded

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.common import emit, environment
from benchmarks.copies import in_float32, set_aside, with_own_weights
from models.accelerator import Accelerator, open_accelerator, pick_dtype
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load, silence_libraries, tune
from models.quantization import quantize
from models.tuning import AUTO, PLAIN, Tuning
from pipelines.families.flux1.packed import attention_shape, modulation_rows, packed_forward
from pipelines.families.flux1.sampling import position_ids
from pipelines.families.layout import PackLayout
from pipelines.ops.attention_choice import measure_ms
from pipelines.ops.compute import Compute, choose_compute
from server.bench.report import table

ON = replace(AUTO.resolved("cuda"), replay=False)
"""As a GPU serves, but that a step is never replayed: here single forwards are measured, and never twice at once."""

SWITCHES = tuple(name for name in ON.__slots__ if getattr(ON, name) != getattr(PLAIN, name))


@dataclass(frozen=True, slots=True)
class Pack:
    """Equal pictures in one step. Args: name: WIDTHxHEIGHT, or WIDTHxHEIGHT*COUNT."""

    name: str
    width: int
    height: int
    count: int


@dataclass(frozen=True)
class Inputs:
    """What one forward reads, in the model's dtype, and what it should give: float32."""

    pack: Pack
    layout: PackLayout
    latents: Tensor
    prompt: Tensor
    text: Tensor
    temb: Tensor
    modulation: Tensor
    exact: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Args: without: what the step computes anew that is otherwise kept (see `RECOMPUTED`). float8: the blocks' weights.
    """

    name: str
    tuning: Tuning
    without: str | None = None
    float8: bool = False


def cases() -> list[Case]:
    """Every row, the baseline first."""
    kept = [Case(f"off, without {name}", PLAIN, name) for name in RECOMPUTED]
    alone = [Case(f"{name} alone", replace(PLAIN, **{name: getattr(ON, name)})) for name in SWITCHES]
    alone.insert(2, Case("kernels=compiled alone", replace(PLAIN, kernels="compiled")))
    but_one = [Case(f"on but {name}", replace(ON, **{name: getattr(PLAIN, name)})) for name in SWITCHES]
    compiled = replace(ON, kernels="compiled")
    on = [
        Case("on", ON),
        Case("on, kernels=compiled", compiled),
        Case("on, compile_vae", replace(ON, compile_vae=True)),
    ]
    rounded = replace(ON, round_attention=True)
    float8 = [
        Case("on, float8", ON, float8=True),
        Case("on, float8, kernels=compiled", compiled, float8=True),
        Case("on, float8, round_attention", rounded, float8=True),
    ]
    return [Case("off", PLAIN), *kept, *alone, *on, *float8, *but_one]


def make_inputs(components: FluxComponents, pack: Pack, text_tokens: int) -> Inputs:
    """Random pictures in the middle of their steps, all different."""
    transformer, device, dtype = components.transformer, components.device, components.dtype
    config, cell = transformer.config, components.size_multiple
    height, width = pack.height // cell, pack.width // cell
    generator = torch.Generator().manual_seed(pack.width)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    prompt = noise(pack.count * text_tokens, config.joint_attention_dim)
    times, guidance = (torch.linspace(*ends, pack.count).to(device, dtype) for ends in ((900, 300), (2000, 5000)))
    pooled = noise(pack.count, config.pooled_projection_dim)
    temb = transformer.time_text_embed(*((times, guidance) if components.guidance_embeds else (times,)), pooled)
    layout = PackLayout(
        (text_tokens,) * pack.count, (height * width,) * pack.count, rope_of(components, pack, text_tokens)
    )
    return Inputs(
        pack,
        layout,
        noise(pack.count * height * width, config.in_channels),
        prompt,
        transformer.context_embedder(prompt),
        temb,
        modulation_rows(transformer, temb),
    )


def rope_of(components: FluxComponents, pack: Pack, text_tokens: int) -> Tensor:
    """The rotations of all tokens, as the runner makes them once a request."""
    cell = components.size_multiple
    ids = position_ids(text_tokens, pack.height // cell, pack.width // cell, components.dtype).to(components.device)
    cos, sin = components.transformer.pos_embed(ids)
    one = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]
    return one.repeat(pack.count, 1, 1)


def with_exact(components: FluxComponents, inputs: Sequence[Inputs]) -> list[Inputs]:
    """Beside every pack, the plain forward in float32."""
    transformer = in_float32(components.transformer, components.device)
    exact = [
        packed_forward(transformer, i.layout, i.latents.float(), i.text.float(), i.modulation.float(), Compute())
        for i in inputs
    ]
    return [replace(i, exact=e) for i, e in zip(inputs, exact, strict=True)]


RECOMPUTED: dict[str, Callable[[FluxComponents, Inputs], object]] = {
    "modulation table": lambda components, i: modulation_rows(components.transformer, i.temb),
    "kept RoPE": lambda components, i: rope_of(components, i.pack, i.layout.text_lengths[0]),
    "kept prompt embedding": lambda components, i: components.transformer.context_embedder(i.prompt),
}
"""What a step would also compute without it."""


def measure_case(
    case: Case, components: FluxComponents, accelerator: Accelerator, inputs: Sequence[Inputs], repeats: int
) -> dict[str, Any]:
    """One row: figures by pack, or why there are none."""
    row: dict[str, Any] = {"case": case.name, "tuning": str(case.tuning), "cells": {}}
    if reason := _pointless(case.tuning, accelerator):
        return row | {"why_not": reason}
    notes: list[str] = []
    try:
        own = with_own_weights(components, accelerator)
        tune(own, case.tuning, accelerator)
        transformer = own.transformer
        if case.float8:
            quantize(transformer, "fp8", accelerator)
        compute = choose_compute(
            case.tuning, *attention_shape(transformer), components.dtype, accelerator, notes.append, case.float8
        )
        errors = []
        for i in inputs:
            errors.append(relative_error(_forward(transformer, i, compute), i.exact))

            def step(i: Inputs = i) -> None:
                if case.without is not None:
                    RECOMPUTED[case.without](own, i)
                _forward(transformer, i, compute)

            row["cells"][i.pack.name] = {"step_ms": measure_ms(step, accelerator, repeats)}
        row["error"] = max(errors)
        row["decode_ms"] = _decode_ms(own, accelerator, inputs[0].pack, repeats)
    except Exception as exc:
        # Whatever breaks one row, a compiler's or a driver's own errors too, the others are still worth their time.
        row["why_not"] = f"broke: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
    finally:
        accelerator.allow_split_k(True)
    return row | {"note": "; ".join(notes)}


def _pointless(tuning: Tuning, accelerator: Accelerator) -> str | None:
    """Why these switches would measure the baseline again."""
    if accelerator.kind == "cuda":
        return None
    if tuning == replace(PLAIN, attention="auto"):
        return "one attention on this device"
    if tuning == replace(PLAIN, kernels="triton"):
        return "Triton needs a GPU"
    return None


def _forward(transformer: FluxTransformer2DModel, i: Inputs, compute: Compute) -> Tensor:
    return packed_forward(transformer, i.layout, i.latents, i.text, i.modulation, compute)


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values."""
    return float((result.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _decode_ms(components: FluxComponents, accelerator: Accelerator, pack: Pack, repeats: int) -> float:
    scale = components.vae_scale_factor
    shape = (1, components.latent_channels, pack.height // scale, pack.width // scale)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
        accelerator.device, components.vae.dtype
    )
    return measure_ms(lambda: components.vae.decode(latents), accelerator, repeats)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Beside every time, how many times as fast as with everything off."""
    base = rows[0]
    for row in rows:
        for name, cell in row["cells"].items():
            cell["speedup"] = base["cells"][name]["step_ms"] / cell["step_ms"]
        if "decode_ms" in row:
            row["decode_speedup"] = base["decode_ms"] / row["decode_ms"]
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table; a row without figures says why."""
    lines = []
    for row in rows:
        line = {"switches": row["case"]}
        for name, cell in row["cells"].items():
            line[f"{name}: ms"] = f"{cell['step_ms']:.3g}"
            line[f"{name}: x off"] = f"{cell['speedup']:.3f}"
        if "decode_ms" in row:
            line |= {
                "error": f"{row['error']:.2e}",
                "decode: ms": f"{row['decode_ms']:.3g}",
                "decode: x off": f"{row['decode_speedup']:.3f}",
            }
        lines.append(line | {"note": row.get("why_not") or row.get("note", "")})
    return table(lines)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    accelerator = open_accelerator(arguments.device)
    spec = resolve(arguments.model)
    components = load(spec, accelerator, pick_dtype(arguments.dtype, accelerator))
    inputs = [make_inputs(components, pack, spec.max_sequence_length) for pack in arguments.packs]
    inputs = with_exact(components, inputs)
    components = set_aside(components, accelerator, "transformer", "vae", "text_encoder", "text_encoder_2")
    rows = []
    for case in cases():
        if arguments.cases and case.name not in ("off", *arguments.cases):
            continue
        gc.collect()
        accelerator.release_cached_memory()
        rows.append(measure_case(case, components, accelerator, inputs, arguments.repeats))
        print(f"{case.name}: {rows[-1].get('why_not') or rows[-1].get('note') or 'measured'}", flush=True)
    with_ratios(rows)
    report = {
        "benchmark": "ablation",
        "model": spec.name,
        "dtype": str(components.dtype),
        "environment": environment(accelerator.name),
        "rows": rows,
    }
    print(f"\n{markdown(rows)}\n")
    return report


def pack(text: str) -> Pack:
    """`512x512*4`. Raises: ValueError."""
    size, _, count = text.partition("*")
    width, _, height = size.partition("x")
    return Pack(text, int(width), int(height), int(count or 1))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="flux-shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--packs", type=pack, nargs="+", default=[pack("1024x1024"), pack("512x512*4")])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--cases", nargs="+", choices=[case.name for case in cases()], help="these and off; default: all"
    )
    parser.add_argument("--out", type=Path, help="also write the report here")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    silence_libraries()
    torch.set_grad_enabled(False)
    with torch.inference_mode():
        report = measure(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    emit(report)


if __name__ == "__main__":
    main()
