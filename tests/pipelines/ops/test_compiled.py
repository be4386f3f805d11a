"""Regions through torch.compile: equal to eager, and made once, not for every pack."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from models.fusion import fuse
from pipelines.ops.compute import Compute, compiled
from pipelines.ops.ops import TRACEABLE
from tests.pipelines.families.flux1.test_packed import MIX, Sample, make_sample, make_transformer, packed

REGIONS = 4
OTHER_PACKS = (MIX[:2], [*MIX, *MIX], [((9, 2), 7, 0.9, 3.5, 1), ((5, 5), 8, 0.9, 3.5, 1)])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("is_fused", [False, True])
def test_compiled_regions_equal_eager_and_serve_every_pack(is_fused: bool) -> None:
    torch.compiler.reset()
    counters.clear()
    transformer = make_transformer()
    fuse(transformer, is_fused, is_fused)
    compute = Compute(ops=TRACEABLE, region=compiled)

    def distance(mix: list[Sample]) -> float:
        pairs = zip(packed(transformer, mix), packed(transformer, mix, compute), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    with torch.inference_mode():
        assert distance([make_sample(*values, torch.float32) for values in MIX]) <= 1e-5
        assert counters["stats"]["unique_graphs"] == REGIONS
        for pack in OTHER_PACKS:
            assert distance([make_sample(*values, torch.float32) for values in pack]) <= 1e-5
        assert counters["stats"]["unique_graphs"] == REGIONS
        assert distance([make_sample(*MIX[0], torch.float32)]) <= 1e-5
        # One row is a case of its own to torch.compile: nothing is broadcast over a single row as over several.
        assert counters["stats"]["unique_graphs"] <= 2 * REGIONS
    assert not counters["graph_break"]
