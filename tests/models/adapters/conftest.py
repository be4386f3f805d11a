"""What files are fitted to."""

from __future__ import annotations

import pytest

from models.components import FluxComponents


@pytest.fixture
def components(tiny: FluxComponents) -> FluxComponents:
    return tiny
