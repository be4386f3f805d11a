"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve
from tests.server.s3_service import S3Service, _s3_service, s3

__all__ = ["_s3_service", "s3"]

# A shared machine may pause any example for longer than the default deadline of 0.2 s.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    """An open server whose files lie in its folder, or in a bucket."""
    settings = {}
    if request.param == "s3":
        service: S3Service = request.getfixturevalue("s3")
        settings = {"objects": service.new_url(), "s3_endpoint": service.endpoint}
    with serve(ApiNode(tmp_path, **settings)) as served:
        yield served


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An open server."""
    with serve(ApiNode(tmp_path)) as served:
        yield served
