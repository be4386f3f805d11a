"""One real server for the session, and the official clients as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.official import CLIENTS, Client
from tests.acceptance.serving import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server with the embedded model, ready."""
    server = Server(tmp_path_factory.mktemp("node")).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest) -> Client:
    """Each official client in turn."""
    client = CLIENTS[request.param]
    if (reason := client.why_not()) is not None:
        pytest.skip(reason)
    return client
