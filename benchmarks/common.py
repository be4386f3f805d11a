"""What benchmarks of models share: the machine's name tag, and one JSON line last."""

from __future__ import annotations

import json
from typing import Any

import torch

from server.bench.stamp import stamp


def environment(device_name: str) -> dict[str, Any]:
    """What a reader needs to judge a figure: commit, versions, machine, how busy it was, device, torch's threads."""
    return stamp() | {"device": device_name, "threads": torch.get_num_threads()}


def emit(report: dict[str, Any]) -> None:
    """The last line of a benchmark, for programs."""
    print(json.dumps(report, sort_keys=True), flush=True)
