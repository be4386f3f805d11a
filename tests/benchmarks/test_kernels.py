"""Triton's kernels, compiled ahead of time for GPUs that are not here: nothing spills, and memory is read whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
REGISTERS = 128
"""Of the 65,536 of a multiprocessor, so that two programs of eight warps run on one."""

SHARED = 48 << 10
"""What every GPU gives a program that does not ask for more."""


def compiled(folder: Path, *targets: int) -> list[dict[str, Any]]:
    """In a process of its own: in this one, kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--targets", *map(str, targets)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["registers"] <= REGISTERS, row
        assert row["shared"] <= SHARED, row
        # Weights of a norm, once a program, may be read a value at a time.
        assert row["narrow"] <= 2 < row["accesses"], row


def test_kernels_compile_for_hopper_and_blackwell_within_bounds(tmp_path: Path) -> None:
    rows = compiled(tmp_path, 90, 120)
    check(rows)
    kernels = {row["kernel"].split()[0] for row in rows}
    assert kernels == {
        "norm_modulate",
        "gate_add",
        "heads",
        "join_gelu",
        "join_gelu_float8",
        "quantize",
        "sums",
        "apply",
    }
    assert len(rows) == 2 * len({row["kernel"] for row in rows})


@pytest.mark.slow
def test_kernels_compile_for_every_architecture_within_bounds(tmp_path: Path) -> None:
    rows = compiled(tmp_path, 80, 89, 100)
    check(rows)
    assert not any(
        "float8" in row["kernel"] or "IS_FLOAT8=True" in row["kernel"] for row in rows if row["target"] == 80
    )
