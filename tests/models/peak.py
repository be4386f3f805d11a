"""Loads checkpoints in a process of its own: `python -m tests.models.peak [--memory-gb N] ARGUMENT...`.

Prints the most memory that loading took, in bytes, what the process had before not counted. Of several, each is loaded
in turn by a pool that holds so much at once, and then the first one again.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load, silence_libraries
from models.registry import TINY
from pipelines.families.pool import ModelPool


def kilobytes(name: str) -> int:
    """Of this process, as Linux counts them. `getrusage` would count the parent's of before the start, too."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("model", nargs="+")
    arguments = parser.parse_args(argv)
    silence_libraries()
    memory = None if arguments.memory_gb is None else int(arguments.memory_gb * 1e9)
    specs = [resolve(model) for model in arguments.model]
    pool = ModelPool(specs, CpuAccelerator(), torch.bfloat16, memory_bytes=memory)
    load(TINY, CpuAccelerator())  # what the libraries import on first use is no part of a checkpoint
    before = kilobytes("VmRSS")
    for spec in specs if memory is None else (*specs, specs[0]):
        pool.runner(spec.name)
    print((kilobytes("VmHWM") - before) * 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
