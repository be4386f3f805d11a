"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

# A shared machine may pause any example for longer than the default deadline of 0.2 s.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An open server."""
    with serve(ApiNode(tmp_path)) as served:
        yield served
