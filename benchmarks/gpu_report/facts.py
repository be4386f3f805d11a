"""The card, its clocks, the versions, and the two ceilings: copies and products."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec

import torch

from benchmarks.common import environment
from benchmarks.gpu_report.parts import Figures
from benchmarks.gpu_report.subject import Subject
from benchmarks.gpu_report.timing import device_ms

_PACKAGES = ("triton", "fa3_fwd_interface", "torchao", "cache_dit", "pynvml")
_ASKED = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def facts(subject: Subject, row: Figures) -> None:
    accelerator = subject.accelerator
    row["environment"] = environment(accelerator.name)
    row["installed"] = [name for name in _PACKAGES if find_spec(name)]
    if not subject.on_gpu:
        return
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"]
    row["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    x = torch.empty(4 << 30, dtype=torch.uint8, device=accelerator.device)
    y = torch.empty_like(x)
    row["copy_TB_s"] = round(2 * x.numel() / device_ms(lambda: y.copy_(x), accelerator) / 1e9, 3)
    side = 8192
    a, b = (torch.randn(side, side, device=accelerator.device, dtype=torch.bfloat16) for _ in range(2))
    row["bf16_TFLOP_s"] = round(2 * side**3 / device_ms(lambda: a @ b, accelerator, 10) / 1e9, 1)
