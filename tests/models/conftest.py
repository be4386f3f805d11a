"""A small checkpoint's folder, and copies of it to be spoiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import TINY, ModelSpec


@pytest.fixture(scope="session")
def tiny() -> FluxComponents:
    return load(TINY, CpuAccelerator())


@pytest.fixture(scope="session")
def checkpoint(tiny: FluxComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock FluxPipeline folder."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-flux"
    tiny.pipeline().save_pretrained(folder)
    return folder


def copy_of(checkpoint: Path, folder: Path) -> Path:
    """The same folder, to be spoiled: links to the files, so that parts stay identical."""
    for file in checkpoint.rglob("*"):
        target = folder / file.relative_to(checkpoint)
        if file.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return copy_of(checkpoint, tmp_path / "copy")


def spec(folder: Path, name: str = "tiny") -> ModelSpec:
    return replace(TINY, name=name, source=str(folder))
