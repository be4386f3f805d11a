"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An open server."""
    with serve(ApiNode(tmp_path)) as served:
        yield served
