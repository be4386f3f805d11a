"""One server for the examples: every endpoint at once, behind a key, and allowed to call receivers on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.serving import ROOT, Server, clean_environment

EXAMPLES = ROOT / "examples"
KEY = "examples:secret"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Ready; what is drawn is not judged here."""
    server = Server(
        tmp_path_factory.mktemp("examples"),
        arguments=("--allow-private-cidr", "127.0.0.0/8"),
        environment={"FLUXSERVE_API_KEYS": KEY},
        model="fake:step_ms=2",
    ).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def pointed(server: Server) -> dict[str, str]:
    """The environment of a shell after `eval "$(fluxserve env --client python)"`, with this Python first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean_environment() | server.setup("python") | {"PATH": path}
