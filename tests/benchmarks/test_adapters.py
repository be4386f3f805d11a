"""The benchmark of LoRA rows on a tiny random FLUX."""

from __future__ import annotations

import pytest

from benchmarks import adapters


@pytest.mark.parametrize("more", [[], ["--blocks", "1,1"], ["--quantization", "fp8"]])
def test_every_case_has_a_ratio_to_the_step_without_adapters(more: list[str]) -> None:
    flags = ["--model", "random:tiny", "--device", "cpu", "--pack", "64x64*2", "--text-tokens", "4", "--rank", "2"]
    report = adapters.measure(adapters.parse([*flags, "--repeats", "2", *more]))
    packed = ["one for all rows", "another for every row", "one row of the pack"]
    assert list(report["cases"]) == ["none", *packed, "another for every row, a step for each"]
    assert report["cases"]["none"]["ratio"] == 1
    assert all(case["step_ms"] > 0 and case["ratio"] > 0 for case in report["cases"].values())
    assert report["rank"] == 2
