"""What a picture counts as: the scheduler adds pictures of every family."""

from __future__ import annotations

import pytest

from pipelines.engine.cost import CostModel
from pipelines.families.sdxl.limits import SdxlLimits
from tests.pipelines.families.sdxl.small import params

FLUX_TOKENS, FLUX_MS, SDXL_MS = 4608, 180.0, 35.0
"""Of one picture of 1024 x 1024; SDXL's arithmetic with guidance is a fifth of FLUX.1's."""


def test_a_cost_model_that_sees_both_families_still_knows_each() -> None:
    wanted = params("playground", width=1024, height=1024, guidance_scale=5.0)
    tokens = SdxlLimits(8, 1 << 22).tokens(wanted)
    cost = CostModel()
    for _ in range(60):
        cost.observe([FLUX_TOKENS], FLUX_MS)
        cost.observe([tokens], SDXL_MS)
    assert cost.predict([FLUX_TOKENS]) == pytest.approx(FLUX_MS, rel=0.2)
    assert cost.predict([tokens]) == pytest.approx(SDXL_MS, rel=0.2)
    assert cost.row_ms(FLUX_TOKENS) > FLUX_MS / 2, "another picture of FLUX.1 is not for nothing"
