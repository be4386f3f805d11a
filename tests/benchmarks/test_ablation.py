"""The table of switches on a tiny random FLUX: every switch has its rows, and errors are errors."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import ablation
from models.accelerator import open_accelerator
from models.loading import load
from models.registry import TINY
from models.tuning import AUTO, PLAIN

FLAGS = ["--model", "random:tiny", "--device", "cpu", "--packs", "32x32", "16x16*3", "--repeats", "2"]
QUICK = ["off, without modulation table", "attention alone", "kernels alone", "fuse_qkv alone", "fuse_mlp alone"]


def test_rows_have_ratios_and_errors_or_say_why_not() -> None:
    with torch.inference_mode():
        report = ablation.measure(ablation.parse([*FLAGS, "--cases", *QUICK]))
    rows = {row["case"]: row for row in report["rows"]}
    assert list(rows) == ["off", *QUICK]
    assert rows["attention alone"]["why_not"] == "one attention on this device"
    assert rows["kernels alone"]["why_not"] == "Triton needs a GPU"
    base = rows["off"]["cells"]
    for name in ("off", "off, without modulation table", "fuse_qkv alone", "fuse_mlp alone"):
        row = rows[name]
        assert row["error"] < 1e-5
        assert set(row["cells"]) == {"32x32", "16x16*3"}
        for pack, cell in row["cells"].items():
            assert cell["speedup"] == base[pack]["step_ms"] / cell["step_ms"]
    text = ablation.markdown(report["rows"])
    assert "| kernels alone |" in text
    assert "one attention on this device" in text


def test_every_switch_is_measured_alone_and_left_out() -> None:
    names = [case.name for case in ablation.cases()]
    assert names[0] == "off"
    assert len(names) == len(set(names))
    for switch in ablation.SWITCHES:
        assert f"{switch} alone" in names
        assert f"on but {switch}" in names


def test_what_a_gpu_serves_is_measured_in_float8_too() -> None:
    served = replace(AUTO.resolved("cuda"), replay=False)
    rows = {case.name: case for case in ablation.cases()}
    assert rows["on"].tuning == served
    assert (rows["on, float8"].tuning, rows["on, float8"].float8) == (served, True)
    assert rows["on, float8, round_attention"].tuning == replace(served, round_attention=True)


def test_float8_weights_are_another_row_with_a_larger_error() -> None:
    accelerator = open_accelerator("cpu")
    with torch.inference_mode():
        components = load(TINY, accelerator)
        inputs = ablation.with_exact(components, [ablation.make_inputs(components, ablation.pack("32x32"), 8)])
        rows = [
            ablation.measure_case(ablation.Case("", PLAIN, float8=is_float8), components, accelerator, inputs, 1)
            for is_float8 in (False, True)
        ]
    assert rows[0]["error"] < rows[1]["error"] / 10 < 0.1


def test_half_precision_shows_in_the_error() -> None:
    accelerator = open_accelerator("cpu")
    with torch.inference_mode():
        components = load(TINY, accelerator, torch.bfloat16)
        inputs = ablation.with_exact(components, [ablation.make_inputs(components, ablation.pack("32x32"), 8)])
        row = ablation.measure_case(ablation.Case("off", PLAIN), components, accelerator, inputs, 1)
    assert 1e-4 < row["error"] < 1e-1


def test_a_row_that_breaks_is_reported() -> None:
    accelerator = open_accelerator("cpu")
    case = ablation.Case("on", replace(PLAIN, attention="fa3"))
    with torch.inference_mode():
        components = load(TINY, accelerator)
        inputs = ablation.with_exact(components, [ablation.make_inputs(components, ablation.pack("32x32"), 8)])
        row = ablation.measure_case(case, components, accelerator, inputs, 1)
    assert row["why_not"].startswith("broke: ValueError: attention fa3 cannot run here: needs a Hopper GPU")
