"""The project's tests that need a GPU, with what time is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_report.parts import Figures
from benchmarks.gpu_report.subject import Subject

_ROOT = Path(__file__).parents[2]
SECONDS = 240


def gpu_tests(subject: Subject, row: Figures) -> None:
    subject.forget("runner", "exact", "float8", "plain")
    files = [str(file) for file in sorted((_ROOT / "tests").glob("**/test_*.py")) if "mark.gpu" in file.read_text()]
    # Warnings of packages that only such machines have are not what is asked here.
    flags = ["-m", "gpu", "-q", "-ra", "--no-header", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    with (subject.options.out / "tests.txt").open("w") as out:
        command = [sys.executable, "-m", "pytest", *flags, *files]
        child = subprocess.Popen(command, cwd=_ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            row["exit"] = child.wait()
        finally:
            child.kill()
            child.wait()
            row["last_lines"] = (subject.options.out / "tests.txt").read_text().strip().split("\n")[-25:]
