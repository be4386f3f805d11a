"""Adapter files are read beside the steps; what waits for them is launched once they are there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.accelerator import CpuAccelerator
from models.adapter_files import AdapterError
from models.components import FluxComponents
from pipelines.adapters.ahead import After, ReadAhead
from pipelines.adapters.cache import AdapterCache
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.frames import Finished, Progress
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, make_engine, make_params, of, submit


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """A file that cannot be read until something is written into it; then it is empty."""
    os.mkfifo(tmp_path / "slow.safetensors")
    yield tmp_path / "slow.safetensors"
    # Whoever still waits for it is let go. Opened for both, a pipe never blocks.
    os.close(os.open(tmp_path / "slow.safetensors", os.O_RDWR | os.O_NONBLOCK))


def release(pipe: Path) -> None:
    """Let a reader go on."""
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))


def test_a_slow_file_holds_up_its_own_request_alone(components: FluxComponents, slow: Path) -> None:
    runner = FluxRunner(components, CpuAccelerator(), adapters=AdapterCache(slow.parent, 1 << 30))
    engine = make_engine(runner)
    submit(engine, "slow", make_params(adapters=(Adapter(slow.name),)))
    engine.step(wait=False)
    submit(engine, "quick", make_params())
    frames = []
    for _ in range(3000):
        frames += engine.step(wait=False)
        if of(frames, "quick", Finished):
            break
        time.sleep(0.01)
    assert of(frames, "quick", Finished), "others are drawn meanwhile"
    assert not of(frames, "slow", Progress)
    release(slow)
    (failed,) = [frame for frame in drain(engine) if getattr(frame, "job_id", "") == "slow"]
    assert "not a safetensors file" in str(failed)


def test_work_begins_after_the_files_and_says_when_to_look(components: FluxComponents, tmp_path: Path) -> None:
    file = save_diffusers(random_lora(components.transformer, 2, 1), tmp_path / "a.safetensors")
    files, device, looked = ReadAhead(tmp_path), CpuAccelerator(), threading.Semaphore(0)
    work = After(
        [files.begin(file.name)], lambda: device.launch("text", lambda: len(files.take(file.name).transformer))
    )
    work.notify(looked.release)
    assert looked.acquire(timeout=10)
    work.wait()
    assert looked.acquire(timeout=10)
    assert work.is_done()
    assert work.result() > 0


def test_a_file_that_cannot_be_read_says_so_to_everyone_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"")
    files = ReadAhead(tmp_path)
    for _ in range(2):
        with pytest.raises(AdapterError):
            files.take("bad.safetensors")
    (tmp_path / "bad.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        files.take("bad.safetensors")
