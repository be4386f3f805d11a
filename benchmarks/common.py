"""What benchmarks share: the machine's name tag, percentiles, and one JSON line last."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import diffusers
import torch


def environment(device_name: str) -> dict[str, Any]:
    """What a reader needs to judge a figure: commit, versions, device, how busy the machine was."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": device_name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "command": " ".join([os.path.basename(sys.executable), "-m", *_module_and_arguments()]),
    }


def _module_and_arguments() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name if spec else sys.argv[0], *sys.argv[1:]]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    index = max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1)
    return ordered[min(index, len(ordered) - 1)]


def emit(report: dict[str, Any]) -> None:
    """The last line of a benchmark, for programs."""
    print(json.dumps(report, sort_keys=True), flush=True)
