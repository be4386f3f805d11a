"""`fluxserve doctor --gpu-report`: runs the measurements of benchmarks/gpu_report, which a checkout brings along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from server.cli.failures import ENVIRONMENT, CommandError
from server.settings import Settings

BUDGET_S = 600.0
_ROOT = Path(__file__).parents[2]


def report_gpu(settings: Settings, out: Path, budget_s: float, as_json: bool) -> None:
    """Measure in a process of its own, which has torch. Raises: CommandError with the exit status of that process."""
    if not (_ROOT / "benchmarks" / "gpu_report").is_dir():
        raise CommandError(
            "the GPU report is measured from a checkout of fluxserve, not from an image or a wheel", ENVIRONMENT
        )
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--out", str(out.resolve()), "--budget", str(budget_s)]
    done = subprocess.run(
        [*command, "--device", settings.device],
        cwd=_ROOT,
        stdout=2 if as_json else None,  # progress, beside the one JSON object
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it was stopped"]
        raise CommandError(f"no GPU report: {reason[0]}", done.returncode if done.returncode > 0 else ENVIRONMENT)
    print(json.dumps({"ok": True, "folder": str(out)}) if as_json else f"the report is in {out}: report.md first")
