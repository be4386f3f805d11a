"""The GPU report, whole, on a CPU with a tiny model: every part has figures, and one that breaks stops no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_report import parts
from benchmarks.gpu_report.__main__ import PARTS, impossible
from benchmarks.gpu_report.parts import Figures, Part, Report
from benchmarks.gpu_report.plots import plots
from benchmarks.gpu_report.power import account, parsed
from benchmarks.gpu_report.subject import Options, Subject
from benchmarks.gpu_report.summary import markdown
from benchmarks.gpu_report.timing import class_of, kernels

ROOT = Path(__file__).parents[2]
SERVERS_OWN = [
    "apsw",
    "fastapi",
    "starlette",
    "pydantic",
    "pydantic_settings",
    "orjson",
    "jwt",
    "uvicorn",
    "websockets",
]


def test_every_part_has_figures_and_the_folder_is_complete(tmp_path: Path) -> None:
    """Where a GPU is lent there may be nothing that only the server needs."""
    flags = ["--device", "cpu", "--model", "random:tiny", "--size", "64", "--steps", "2", "--out", str(tmp_path)]
    without = f"import sys; sys.modules.update(dict.fromkeys({SERVERS_OWN}))"
    run = "import runpy; runpy.run_module('benchmarks.gpu_report', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{without}; {run}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["parts"]) == [part.name for part in PARTS]
    for part in PARTS:
        row = report["parts"][part.name]
        assert "broke" not in row, row
        assert ("skipped" in row) == part.needs_gpu
    assert report["parts"]["smoke"]["mean_difference_to_cpu"] == 0
    assert report["parts"]["caching"]["bf16, every second step"]["steps"] == 2 * 2
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {heading}" in text for heading in ("Pictures", "Steps", "Ways to run", "Beside the steps"))
    files = {file.name for file in tmp_path.iterdir()}
    assert files >= {
        "attention.png",
        "linears.png",
        "ways.png",
        "smoke-cpu.png",
        "profile-bf16.txt",
        "profile-admit.txt",
    }


def test_a_part_that_breaks_or_takes_too_long_keeps_its_figures_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(subject: Subject, row: Figures) -> None:
        row["before"] = 1
        raise ValueError("no such kernel")

    def takes_long(subject: Subject, row: Figures) -> None:
        row["before"] = 2
        time.sleep(60)

    def works(subject: Subject, row: Figures) -> None:
        row["fine"] = True

    report = Report(Subject(Options(tmp_path, "cpu", "random:tiny")), {})
    monkeypatch.setattr(parts, "LEAST_S", 0.1)
    slow, gpu = Part("b", 0.2, takes_long), Part("d", 9, works, needs_gpu=True)
    report.run([Part("a", 50, breaks), slow, Part("c", 9, works), gpu])
    rows = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert rows["a"]["before"] == 1
    assert rows["a"]["broke"] == "ValueError: no such kernel"
    assert rows["b"]["before"] == 2
    assert rows["b"]["broke"].startswith("OutOfTimeError")
    assert rows["c"]["fine"]
    assert rows["d"] == {"skipped": "needs a GPU"}


def test_a_part_is_not_begun_without_time(tmp_path: Path) -> None:
    report = Report(Subject(Options(tmp_path, "cpu", "random:tiny", budget_s=1)), {})
    report.run([Part("a", 50, lambda subject, row: row.update(fine=True))])
    assert report.content["parts"]["a"] == {"skipped": "no time left"}


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("benchmarks/results/*/report.json")), ids=lambda file: file.parent.name
)
def test_kept_reports_can_be_drawn(file: Path, tmp_path: Path) -> None:
    """Of some parts, too: a run may have been for a single question."""
    report = json.loads(file.read_text())
    every = {"attention.png", "linears.png", "step.png", "ways.png"}
    drawn = {plot.name for plot in plots(report, tmp_path)}
    assert markdown(report).startswith("# GPU report: NVIDIA H200")
    assert drawn == every if file.parent.name.endswith("-first") else drawn <= every


def test_kernels_are_summed_by_name_and_kind() -> None:
    spans = [("nvjet_sm90_tst", 0.0, 2000.0), ("cudnn_generated_sdpa_flash_fprop", 2500.0, 3000.0)]
    figures = kernels([*spans, ("nvjet_sm90_tst", 3000.0, 4000.0)])
    assert figures["device_busy_ms"] == 3.5
    assert figures["first_to_last_ms"] == 4
    assert figures["classes_ms"] == {"matrix products": 3.0, "attention": 0.5}
    assert figures["top"][0] == {"kernel": "nvjet_sm90_tst", "ms": 3.0, "calls": 2}
    assert class_of("_norm_rotate_kernel") == "norm and rotation"
    assert class_of("at::native::GeluCUDAKernelImpl") == "activation"
    assert class_of("something else") == "other"


def test_power_is_read_from_nvidia_smi_and_spread_over_pictures() -> None:
    assert parsed("612.30, 1755, 61\n") == (612.3, 1755.0, 61.0)
    assert parsed("[N/A], 1755, 61\n") is None
    figures = account([(0.0, 600.0, 1700.0, 60.0), (0.1, 700.0, 1800.0, 62.0)], seconds=4.0, pictures=2)
    assert figures["watts"] == 650
    assert figures["joules_a_picture"] == 1300


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    reason = impossible(Options(tmp_path, "cpu"))
    assert reason is not None
    assert "needs a GPU" in reason
    assert impossible(Options(tmp_path, "cpu", "flux-shapes")) is None
    assert "is not here" in str(impossible(Options(tmp_path, "cuda:77")))
