"""Peers side by side on a tiny random FLUX: who ran, who did not and why, and that batching really batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from benchmarks import peers
from benchmarks.engine.systems import Ours, Stock
from models.accelerator import open_accelerator
from models.loading import load
from models.registry import TINY
from models.tuning import AUTO, Tuning
from pipelines.protocol.params import GenerationParams

FLAGS = ["--model", "random:tiny", "--device", "cpu", "--sizes", "32x32", "--steps", "2"]
FAST = ["--count", "2", "--warmup", "0", "--clients", "3"]


def test_every_peer_has_a_row_and_those_that_cannot_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = Stock.generate

    def spied(self: Stock, batch: Sequence[GenerationParams]) -> None:
        sizes.append(len(batch))
        generate(self, batch)

    monkeypatch.setattr(Stock, "generate", spied)
    with torch.no_grad():
        report = peers.measure(peers.parse([*FLAGS, *FAST]))
    rows = {row["peer"]: row for row in report["rows"]}
    assert list(rows) == [peer.name for peer in peers.PEERS]
    ran = {name for name, row in rows.items() if row["cells"]}
    assert ran - {"cache-dit"} == {"stock", "request batching", "fluxserve engine"}
    for name in set(rows) - ran:
        assert rows[name]["why_not"].startswith(("needs an NVIDIA GPU", "not installed: "))
    for name in ran:
        (cell,) = rows[name]["cells"].values()
        assert cell["p50_s"] > 0
        assert cell["speedup"] == rows["stock"]["cells"]["32x32, 2 steps"]["p50_s"] / cell["p50_s"]
    assert rows["stock"]["cells"]["32x32, 2 steps"]["speedup"] == 1
    assert max(sizes) == 3  # three clients with equal requests within one window


def test_a_peer_that_breaks_is_reported_and_the_others_go_on() -> None:
    accelerator = open_accelerator("cpu")
    components = load(TINY, accelerator)
    broken = peers.Peer("broken", lambda components, accelerator: 1 / 0)  # type: ignore[arg-type,return-value]
    shape, settings = peers.Shape(32, 32, 1), peers.Settings(1, 0, 1)
    row = peers.measure_peer(broken, components, accelerator, [shape], settings)
    assert row["why_not"] == "broke: ZeroDivisionError: division by zero"
    text = peers.markdown([stock_row(), row], [shape], 1)
    assert "| broken |  |  |  |  | broke: ZeroDivisionError: division by zero |" in text
    assert "| stock | 2.000 | 1.00 | 0.5 | 1.00 | eager |" in text


def test_the_engine_among_its_peers_is_the_one_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tuning] = []
    monkeypatch.setattr(peers, "tune", lambda components, tuning, accelerator: seen.append(tuning))
    accelerator = open_accelerator("cpu")
    system = peers.engine(load(TINY, accelerator), accelerator)
    assert isinstance(system, Ours)
    assert seen == [AUTO.resolved("cpu")]


def stock_row() -> dict[str, Any]:
    cell = {"p50_s": 2.0, "images_per_s": 0.5}
    rows = [{"peer": "stock", "exact": True, "note": "eager", "cells": {"32x32, 1 steps": cell}}]
    return peers.with_ratios(rows)[0]


def test_no_peer_sees_what_another_changed() -> None:
    accelerator = open_accelerator("cpu")
    components = load(TINY, accelerator)
    before = {name: tensor.clone() for name, tensor in components.transformer.state_dict().items()}

    def vandal(components: Any, accelerator: Any) -> Stock:
        components.transformer.proj_out.weight.zero_()
        components.transformer.set_attention_backend("_native_math")
        return Stock(components)

    backend = _AttentionBackendRegistry.get_active_backend()
    peer = peers.Peer("vandal", vandal)
    row = peers.measure_peer(peer, components, accelerator, [peers.Shape(32, 32, 1)], peers.Settings(1, 0, 1))
    assert row["cells"]
    assert all(torch.equal(before[name], tensor) for name, tensor in components.transformer.state_dict().items())
    assert _AttentionBackendRegistry.get_active_backend() == backend
