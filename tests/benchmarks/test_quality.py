"""The benchmark of what acceleration does to pictures, on a FLUX of a few thousand random weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import quality
from benchmarks.quality import ForcedHits, psnr, ssim

FLAGS = ["--model", "random:tiny", "--device", "cpu", "--sizes", "32x32", "--prompts", "2", "--steps", "10"]


def flat(level: int) -> np.ndarray:
    return np.full((24, 20, 3), level, np.uint8)


def test_psnr_counts_the_mean_square() -> None:
    assert psnr(flat(10), flat(10)) == math.inf
    assert psnr(flat(10), flat(15)) == pytest.approx(20 * math.log10(255 / 5))


def test_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    a, b, c1 = 60, 90, (0.01 * 255) ** 2
    assert ssim(flat(a), flat(a)) == pytest.approx(1.0)
    assert ssim(flat(a), flat(b)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_ssim_falls_with_structure_that_is_gone() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert ssim(noise, noise[::-1]) < 0.1 < ssim(noise, noise // 2) < 1


def test_a_forced_pattern_counts_its_hits_and_says_that_it_is_no_quality() -> None:
    with torch.no_grad():
        report, pictures = quality.measure(quality.parse(FLAGS))
    rows = {row["variant"]: row for row in report["rows"]}
    assert list(rows) == ["none", "regular", "high", "caching", "coarse", "both", "max"]
    assert len(pictures) == 2 * 7
    # Of ten steps the first two and the last are computed, and of the others those with an even number.
    skipped = [step for step in range(2, 9) if ForcedHits().is_hit(step, 0.0)]
    hits = [rows[name]["hit_rate"] for name in ("none", "regular", "coarse", "high", "caching")]
    assert hits == [0, 0, 0, len(skipped) / 10, len(skipped) / 10]
    # A picture whose size has changed has nothing to add again.
    assert 0 < rows["both"]["hit_rate"] == rows["max"]["hit_rate"] <= len(skipped) / 10
    assert rows["caching"]["blocks"] < rows["none"]["blocks"] == 1
    assert rows["none"]["equal_pictures"] == 2
    assert rows["regular"]["equal_pictures"] < 2
    assert "Forced hit pattern, not quality" in quality.markdown(report)


def test_the_embedded_model_is_measured_with_the_scorer() -> None:
    flags = ["--model", "flux-shapes", "--device", "cpu", "--sizes", "128x128", "--prompts", "1", "--steps", "10"]
    with torch.no_grad():
        report, _ = quality.measure(quality.parse([*flags, "--acceleration", "caching", "--threshold", "0.5"]))
    exact, cached = report["rows"]
    assert report["hits"] == "measured"
    assert exact["psnr_db"] is None
    assert 0 < cached["hit_rate"] < 1
    assert 10 < cached["psnr_db"] < 80
    assert cached["scorer"].keys() == exact["scorer"].keys() >= {"colour", "all"}
    assert "Forced" not in quality.markdown(report)
