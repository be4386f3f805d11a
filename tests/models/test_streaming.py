"""Blocks that wait on the host draw what blocks on the device draw, bit for bit."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from models import memory
from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.arguments import resolve
from models.components import FluxComponents
from models.counts import counts_of, flux1_blocks
from models.errors import LoadError
from models.float8 import share
from models.loading import load
from models.registry import TINY
from models.streaming import BlockStream, is_streamed, stream_blocks
from models.tuning import Tuning
from pipelines.families.flux1.runner import FluxRunner
from tests.models.single.conftest import narrow, narrow_folder
from tests.models.single.writers import bfl, write_gguf
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit

__all__ = ["narrow", "narrow_folder"]


def drawn(components: FluxComponents) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Two pictures in one pack."""
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    for job, seed in (("a", 7), ("b", 8)):
        submit(engine, job, make_params(width=48, height=32, seed=seed, max_sequence_length=16))
    frames = drain(engine)
    return [pictures(frames, job)[0] for job in ("a", "b")]


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_streamed_blocks_draw_the_same_bit_for_bit(quantization: str) -> None:
    plain, streamed = (
        load(TINY, CpuAccelerator(), quantization=quantization, offload=offload, tuning=Tuning(fuse_qkv=True))
        for offload in ("text+modulation", "text+blocks")
    )
    assert is_streamed(streamed.transformer)
    assert not is_streamed(plain.transformer)
    for ours, theirs in zip(drawn(streamed), drawn(plain), strict=True):
        assert np.array_equal(ours, theirs)


def test_packed_blocks_are_streamed_as_they_are_stored(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "mine.gguf", bfl(narrow.transformer.state_dict()), gguf.GGMLQuantizationType.Q8_0)
    spec = resolve(f"{narrow_folder}+{file}")
    plain, streamed = (load(spec, CpuAccelerator(), offload=offload) for offload in ("none", "text+blocks"))
    stream = streamed.transformer.block_stream
    assert stream.host_bytes == pytest.approx(sum(flux1_blocks(dict(streamed.transformer.config))) * 8.5 / 8, rel=0.01)
    assert np.array_equal(drawn(streamed)[0], drawn(plain)[0])


def test_what_is_counted_is_what_is_held() -> None:
    stream = load(TINY, CpuAccelerator(), offload="text+blocks").transformer.block_stream
    counts = counts_of(ARCHITECTURES[TINY.source])
    assert stream.host_bytes == memory.streamed_bytes(counts, 4)
    assert stream.device_bytes == memory.buffer_bytes(counts, 4)


def test_blocks_may_be_entered_in_any_order() -> None:
    accelerator = CpuAccelerator()
    hosts = [torch.full((size,), value, dtype=torch.uint8) for value, size in enumerate((40, 30, 20, 10, 50))]
    stream = BlockStream([host.nbytes for host in hosts], accelerator)
    views = [stream.add(host) for host in hosts]
    for block in random.Random(5).choices(range(5), k=60):
        stream.enter(block)
        assert torch.equal(views[block], hosts[block])


def test_a_twin_over_the_same_weights_streams_them_too() -> None:
    transformer = load(TINY, CpuAccelerator(), offload="text+blocks").transformer
    twin = share(transformer)
    assert twin.block_stream is transformer.block_stream
    wanted = copy.deepcopy(load(TINY, CpuAccelerator()).transformer.transformer_blocks[1].ff)
    x = torch.randn(3, 32)
    twin.transformer_blocks[0].ff(x)
    assert torch.equal(twin.transformer_blocks[1].ff(x), wanted(x))
    before = [*nn.Module.modules(transformer)]
    stream_blocks(transformer, CpuAccelerator())
    assert [*transformer.modules()] == before, "once is enough"


def test_blocks_that_wait_cannot_be_compiled() -> None:
    with pytest.raises(LoadError, match="text\\+blocks cannot be compiled"):
        load(TINY, CpuAccelerator(), offload="text+blocks", tuning=Tuning(kernels="compiled"))
