"""A folder of adapters and an engine that takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from pipelines.adapters.cache import AdapterCache
from pipelines.families.flux1.runner import FluxRunner


@pytest.fixture
def adapting(components: FluxComponents, tmp_path: Path) -> FluxRunner:
    """A runner of the tiny model whose adapters are files of `tmp_path`."""
    return FluxRunner(components, CpuAccelerator(), adapters=AdapterCache(tmp_path, 1 << 30))
