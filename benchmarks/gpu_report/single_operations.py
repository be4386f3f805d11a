"""Attention by backend, and every linear of FLUX.1 in bfloat16 and float8, in the sizes that steps have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.gpu_report.parts import Figures, tried
from benchmarks.gpu_report.subject import Subject
from benchmarks.gpu_report.timing import device_ms
from models.float8 import Float8Linear
from pipelines.ops.attention import Attend
from pipelines.ops.attention_choice import BACKENDS, ROUNDED, Place

_TEXT = 512
_HEADS, _HEAD_DIM = 24, 128
_ATTENTIONS = BACKENDS | {f"{name}, 8 bits": backend for name, backend in ROUNDED.items()}
SHAPES = ((3072, 9216), (3072, 3072), (3072, 12288), (12288, 3072), (3072, 21504), (15360, 3072))
"""(in, out) of the linears in FLUX.1's blocks, joined as they are served."""


def attention(subject: Subject, row: Figures) -> None:
    """`ms` by pack and backend; a backend that cannot run says why."""
    device, dtype = subject.accelerator.device, torch.bfloat16
    place = Place(subject.accelerator.kind, subject.accelerator.capability, dtype)
    table = row["ms"] = {}
    for pack, lengths in _packs(subject).items():
        cells = table[pack] = {}
        query, key, value = torch.randn(3, sum(lengths), _HEADS, _HEAD_DIM, device=device, dtype=dtype)
        flop = sum(4 * length**2 * _HEADS * _HEAD_DIM for length in lengths)
        for name, backend in _ATTENTIONS.items():

            def measured(attend: Attend = backend.attend, lengths: tuple[int, ...] = lengths) -> dict[str, float]:
                with torch.inference_mode():
                    ms = device_ms(lambda: attend(query, key, value, lengths), subject.accelerator, 7)  # noqa: B023
                return {"ms": ms, "TFLOP_s": round(flop / ms / 1e9, 1)}  # noqa: B023

            cells[name] = backend.missing(place) or tried(measured)


def _packs(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Tokens of the pictures."""
    big, small = (_TEXT + 64**2, _TEXT + 32**2) if subject.on_gpu else (60, 20)
    return {"lone 1024": (big,), "lone 512": (small,), "4 x 512": (small,) * 4, "mixed": (big, small, small)}


def linears(subject: Subject, row: Figures) -> None:
    """`table`: a line for every shape and number of rows."""
    table = row["table"] = []
    counts = (512, 1536, 4096, 4608) if subject.on_gpu else (32,)
    with torch.inference_mode():
        for k, n in SHAPES if subject.on_gpu else ((64, 192),):
            linear = nn.Linear(k, n, device=subject.accelerator.device, dtype=torch.bfloat16)
            eight = tried(lambda linear=linear: Float8Linear(linear))  # type: ignore[misc]
            table += [_line(subject, linear, eight, count) for count in counts]


def _line(subject: Subject, linear: nn.Linear, eight: Any, count: int) -> dict[str, Any]:
    k, n = linear.in_features, linear.out_features
    x = torch.randn(count, k, device=subject.accelerator.device, dtype=torch.bfloat16)
    line: dict[str, Any] = {"M": count, "K": k, "N": n}
    layers = {"bf16": linear} | ({"float8": eight} if isinstance(eight, nn.Module) else {})
    for name, layer in layers.items():
        ms = tried(lambda layer=layer: device_ms(lambda: layer(x), subject.accelerator, 7))  # type: ignore[misc]
        line[f"{name}_ms"] = ms
        if isinstance(ms, float):
            line[f"{name}_TFLOP_s"] = round(2 * count * k * n / ms / 1e9, 1)
    return line if len(layers) > 1 else line | {"float8": eight}
