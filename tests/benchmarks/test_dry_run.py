"""What a step of FLUX.1 at full size gives a GPU to do has ceilings, and the host waits for nothing inside it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.dry_run.__main__ import CASES, Case, counted, report
from benchmarks.dry_run.counter import counting

CEILINGS = {
    # launches, gigabytes that others than products and attention move, waits of the host
    "1024²": (690, 32, 0),
    "1024², float8": (770, 38, 0),
    "1024² and 2 x 512²": (860, 61, 0),
    "1024², caching": (45, 1.5, 1),  # whether a picture skips is the host's to know
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CEILINGS], ids=lambda case: case.name)
def test_a_step_stays_below_its_ceilings_and_hides_no_wait(case: Case) -> None:
    launches, gigabytes, waits = CEILINGS[case.name]
    with torch.no_grad():
        steps = counted(case)
    assert 0.8 * launches < steps.next.total <= launches
    assert 0.7 * gigabytes < steps.next.gigabytes <= gigabytes
    assert len(steps.next.waits) == waits, steps.next.waits
    assert steps.first.waits == []
    if case.sides == (1024,) and not case.caches:
        assert steps.next.flop / 1e12 == pytest.approx(59.5, rel=0.01)


def test_every_way_to_wait_is_found() -> None:
    x, host = torch.empty(8, 8, device="meta"), torch.ones(8)
    ways = {
        "a value": lambda: x.sum().item(),
        "a condition": lambda: bool((x > 0).any()),
        "a copy to the host": lambda: x.cpu(),
        "a list": lambda: x.sum(0).to("cpu").tolist(),
        "a copy from pageable memory": lambda: host.to("meta"),
        "a constant": lambda: torch.tensor([1, 2]).to("meta", torch.int32),
    }
    for name, way in ways.items():
        with torch.inference_mode(), counting() as tally:
            way()
        assert tally.waits, name
    with torch.inference_mode(), counting(), pytest.raises(AssertionError, match="the device alone"):
        x[x > 0]


def test_launches_are_counted_with_what_they_move() -> None:
    x = torch.empty(8, 16, device="meta")
    with torch.inference_mode(), counting() as tally:
        y = x.view(16, 8).t() + 1  # a view is nothing, the sum reads and writes
        torch.nn.functional.linear(x, torch.empty(4, 16, device="meta"))
        host = torch.ones(3) * 2  # the host's own work
        host.to("meta", non_blocking=True)
    assert y.shape == (8, 16)
    assert tally.total == 2
    assert tally.moved.total() == 2 * 8 * 16 * 4
    assert tally.flop == 2 * 8 * 16 * 4
    assert (tally.uploads, tally.waits) == (1, [])


def test_the_table_has_a_row_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.dry_run.__main__.CASES", CASES[-1:])
    with torch.no_grad():
        assert "| 1024², caching |" in report()
