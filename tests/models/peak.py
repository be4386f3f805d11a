"""Loads a checkpoint in a process of its own: `python -m tests.models.peak ARGUMENT`.

Prints the most memory that loading took, in bytes, what the process had before not counted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load, silence_libraries


def kilobytes(name: str) -> int:
    """Of this process, as Linux counts them. `getrusage` would count the parent's of before the start, too."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


if __name__ == "__main__":
    silence_libraries()
    accelerator = CpuAccelerator()
    before = kilobytes("VmRSS")
    components = load(resolve(sys.argv[1]), accelerator, torch.bfloat16)
    print((kilobytes("VmHWM") - before) * 1024)
