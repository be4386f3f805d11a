"""What a picture counts as: the scheduler adds pictures of every family."""

from __future__ import annotations

import pytest

from pipelines.engine.cost import CostModel
from pipelines.families.sdxl.limits import SdxlLimits
from pipelines.protocol.frames import Note
from tests.pipelines.driving import drain, of
from tests.pipelines.families.sdxl.small import engine, give, params, runner

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


@pytest.mark.parametrize(
    ("own", "steps", "note"),
    [
        (2, 8, "drawn in 8 steps by any, which was distilled for 2; sdxl_lightning_8step_unet.safetensors would match"),
        (
            4,
            1,
            "drawn in 1 step by any, which was distilled for 4; sdxl_lightning_1step_unet_x0.safetensors would match",
        ),
        (4, 3, "drawn in 3 steps by any, which was distilled for 4"),
        (8, 8, None),
        (None, 8, None),
    ],
)
def test_a_request_in_other_steps_than_a_checkpoint_is_for_is_told_so(
    own: int | None, steps: int, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner("lightning"), "limits", SdxlLimits(8, 1 << 22, "any", own))
    busy = engine("lightning")
    give(busy, "a", params("lightning", num_inference_steps=steps))
    assert of(drain(busy), "a", Note) == ([] if note is None else [Note("a", 1, note)])
