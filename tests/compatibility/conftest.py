"""One server with a key for all rows: every client must bring its credentials along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import serve
from tests.conformance.scripted import Scripted

KEY = "3d1f0c9e-compatibility:secret"


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A scripted server that asks for KEY, which `fluxserve env` prints. Tests use `server`."""
    scripted = serve(tmp_path_factory.mktemp("matrix"), FLUXSERVE_API_KEYS=KEY)
    try:
        scripted.server.wait_ready()
        yield scripted
    finally:
        scripted.server.close()


@pytest.fixture
def server(shared_server: Scripted) -> Iterator[Scripted]:
    """The server; what a test left waiting is let go at its end."""
    yield shared_server
    shared_server.open_all()
