"""Does company change a picture's bits, and what does it cost that it does not?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.gpu_report.parts import Figures, tried
from benchmarks.gpu_report.single_operations import SHAPES
from benchmarks.gpu_report.subject import Subject
from benchmarks.gpu_report.timing import device_ms
from models.tuning import Tuning
from pipelines.engine.request import Row
from pipelines.families.flux1.runner import FluxRunner

_COUNTS = ((512, 1024), (512, 1536), (1024, 4096), (4096, 8192), (4096, 6144), (1536, 3072), (1536, 6144), (4608, 7680))
"""(rows of a product, rows of the same product in company)"""


def bits(subject: Subject, row: Figures) -> None:
    """Of each pack, how many pictures come out of a step as they do alone; and the products that do not."""
    for name, allowed in (("split_k on", True), ("split_k off", False)):
        tuning = replace(subject.served, split_k=allowed)
        row[name] = tried(lambda tuning=tuning: _packs(subject, tuning))  # type: ignore[misc]
        row[f"products that move, {name}"] = tried(lambda allowed=allowed: _products(subject, allowed))  # type: ignore[misc]
        tried(subject.as_served)


@torch.inference_mode()
def _packs(subject: Subject, tuning: Tuning) -> Figures:
    runner = FluxRunner(subject.exact, subject.accelerator, tuning)
    big, small = subject.sides()
    rows = {side: [subject.admitted(runner, side, i) for i in range(n)] for side, n in ((big, 3), (small, 8))}
    start = {id(row): row.latents for same in rows.values() for row in same}

    def stepped(sides: Sequence[int]) -> list[tuple[Row, Tensor]]:
        """One step, from the start, of the first pictures of these sizes."""
        chosen = [rows[side][sides[:index].count(side)] for index, side in enumerate(sides)]
        return step(chosen)

    def step(chosen: list[Row]) -> list[tuple[Row, Tensor]]:
        for row in chosen:
            row.latents = start[id(row)]
        runner.denoise(chosen)
        return [(row, row.latents) for row in chosen if row.latents is not None]

    alone = {id(row): step([row])[0][1] for same in rows.values() for row in same}
    line: Figures = {"the same again": torch.equal(stepped((big,))[0][1], alone[id(rows[big][0])])}
    packs = {"big + small": (big, small), "big + 2 small": (big, small, small)}
    packs |= {f"{count} big": (big,) * count for count in (2, 3)}
    packs |= {f"{count} small": (small,) * count for count in (2, 4, 8)}
    for pack, sides in packs.items():
        differences = [float((latents - alone[id(row)]).abs().max()) for row, latents in stepped(sides)]
        line[pack] = {"equal": differences.count(0.0), "of": len(differences), "largest": max(differences)}
    timed = {"lone big": (big,), "lone small": (small,), "4 small": (small,) * 4, "big + 2 small": (big, small, small)}
    line["step_ms"] = {
        pack: device_ms(lambda sides=sides: stepped(sides), subject.accelerator)  # type: ignore[misc]
        for pack, sides in timed.items()
    }
    return line


@torch.inference_mode()
def _products(subject: Subject, allowed: bool) -> list[tuple[int, int, int, int]]:
    """(in, out, rows, rows in company) of the linears whose first rows change bits when more stand behind them."""
    subject.accelerator.allow_split_k(allowed)
    device, moved = subject.accelerator.device, []
    shapes = (*SHAPES, (64, 3072), (3072, 64)) if subject.on_gpu else ((64, 192),)
    for k, n in shapes:
        linear = nn.Linear(k, n, device=device, dtype=torch.bfloat16)
        for few, many in _COUNTS if subject.on_gpu else ((32, 64),):
            x = torch.randn(many, k, device=device, dtype=torch.bfloat16)
            if not torch.equal(linear(x[:few]), linear(x)[:few]):
                moved.append((k, n, few, many))
    return moved
