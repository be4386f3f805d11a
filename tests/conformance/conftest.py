"""Fixtures of the numbered cases: a real server process without an engine, and the official clients beside it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.serving import Server
from tests.conformance.child import JS, Child, js_child, proxied_child, python_child
from tests.conformance.recording import Record
from tests.conformance.scripted import Scripted
from tests.server.receiver import Receiver, receiving

KEY = "7f1d2c3b-conformance:secret"

LOOPBACK = ("--allow-private-cidr", "127.0.0.0/8")
SOON: dict[str, Any] = {
    "server.jobs.webhooks.POLL_S": 0.05,
    "server.jobs.webhooks.TIMEOUT_S": 3.0,
    "server.jobs.webhooks.PAUSES_S": [0.1] * 9,
    "server.jobs.store.sql.PRIVATE_RETENTION_S": 0.0,
    "server.jobs.completion.PRIVATE_RETENTION_S": 0.1,
    "server.jobs.upkeep.SWEEP_S": 0.5,
}
"""Times of hours, in which nobody tests."""

StartServer = Callable[..., Scripted]
"""Scripted server settings in, running server out; it ends with the test."""

NewChild = Callable[..., Child]
"""A scripted server and changes of the set-up in, a client process out; it ends with the test."""


def serve(folder: Any, *arguments: str, constants: dict[str, Any] | None = None, **environment: str) -> Scripted:
    """Start a scripted server with these flags; not ready yet."""
    gates = folder / "gates"
    gates.mkdir(parents=True)
    record = folder / "requests.jsonl"
    server = Server(
        folder / "data",
        arguments=("--device", "cpu", *arguments),
        environment={
            "SCRIPTED_GATES": str(gates),
            "SCRIPTED_RECORD": str(record),
            "SCRIPTED_CONSTANTS": json.dumps(constants or {}),
            **environment,
        },
        command=(sys.executable, "-m", "tests.conformance.scripted_serve"),
    )
    return Scripted(server.start(), gates, record)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """The open server of the session. Tests use `server`."""
    yield from _served(serve(tmp_path_factory.mktemp("open")))


@pytest.fixture(scope="session")
def shared_protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """The server with a key. Tests use `protected`."""
    yield from _served(serve(tmp_path_factory.mktemp("protected"), FLUXSERVE_API_KEYS=KEY))


@pytest.fixture(scope="session")
def shared_hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """The server in a hurry. Tests use `hasty`."""
    folder = tmp_path_factory.mktemp("hasty")
    yield from _served(serve(folder, *LOOPBACK, constants=SOON, SCRIPTED_STEP_S="0"))


def _served(scripted: Scripted) -> Iterator[Scripted]:
    try:
        scripted.server.wait_ready()
        yield scripted
    finally:
        scripted.server.close()


@pytest.fixture
def server(shared_server: Scripted) -> Iterator[Scripted]:
    """An open server with one scripted worker; what a test left waiting is let go at its end."""
    yield shared_server
    shared_server.open_all()


@pytest.fixture
def protected(shared_protected: Scripted) -> Iterator[Scripted]:
    """A server that asks for KEY."""
    yield shared_protected
    shared_protected.open_all()


@pytest.fixture
def hasty(shared_hasty: Scripted) -> Iterator[Scripted]:
    """A server that may call this machine, tries webhooks again soon, and keeps what it shall not keep for no time."""
    yield shared_hasty
    shared_hasty.open_all()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Servers of the test's own, where it restarts one or needs other settings: see `serve`."""
    started: list[Scripted] = []

    def start(*arguments: str, **options: Any) -> Scripted:
        scripted = serve(tmp_path_factory.mktemp("own"), *arguments, **options)
        started.append(scripted)
        scripted.server.wait_ready()
        return scripted

    yield start
    for scripted in started:
        scripted.open_all()
        scripted.server.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody's web server on this machine, for webhooks."""
    with receiving() as received:
        yield received


@pytest.fixture
def record(server: Scripted) -> Record:
    """What reaches the open server from here on."""
    return server.record()


@pytest.fixture
def http(server: Scripted) -> Iterator[httpx.Client]:
    """A plain client for the open server, for the cases marked raw; it follows no redirect."""
    # Not verifying: plain HTTP needs no authorities, and reading them costs more than most tests.
    with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
        yield client


@pytest.fixture(scope="session")
def shared_python(shared_server: Scripted) -> Iterator[Child]:
    """One `fal_client` process for the session. Tests use `python`."""
    yield from _living(python_child(shared_server.server))


@pytest.fixture(scope="session")
def shared_js(shared_server: Scripted) -> Iterator[Child]:
    """One Node process for the session. Tests use `js`."""
    yield from _living(js_child(shared_server.server))


def _living(child: Child) -> Iterator[Child]:
    yield child
    child.kill()


@pytest.fixture
def python(server: Scripted, shared_python: Child) -> Child:
    """`fal_client` 1.0.3 against the open server, sync and async."""
    return shared_python


@pytest.fixture
def js(server: Scripted, request: pytest.FixtureRequest) -> Child:
    """`@fal-ai/client` in Node against the open server, through the proxy endpoint."""
    need_node()
    child: Child = request.getfixturevalue("shared_js")
    return child


@pytest.fixture(scope="session")
def shared_hasty_js(shared_hasty: Scripted) -> Iterator[Child]:
    """One Node process for the session. Tests use `hasty_js`."""
    yield from _living(js_child(shared_hasty.server))


@pytest.fixture
def hasty_js(hasty: Scripted, request: pytest.FixtureRequest) -> Child:
    """`@fal-ai/client` in Node against the server in a hurry."""
    need_node()
    child: Child = request.getfixturevalue("shared_hasty_js")
    return child


@pytest.fixture
def new_python() -> Iterator[NewChild]:
    """`fal_client` processes of the test's own: `new_python(server, FAL_KEY="...")`."""
    yield from _children(python_child)


@pytest.fixture
def new_js() -> Iterator[NewChild]:
    """Node processes of the test's own: `new_js(server, credentials="...")`."""
    need_node()
    yield from _children(js_child)


def _children(make: Callable[..., Child]) -> Iterator[NewChild]:
    made: list[Child] = []

    def start(scripted: Scripted, **changes: Any) -> Child:
        made.append(make(scripted.server, **changes))
        return made[-1]

    yield start
    for child in made:
        child.kill()


def need_node() -> None:
    """Skip the test where Node or the client is not installed."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    if not (JS / "node_modules").is_dir():
        pytest.skip("the JavaScript client is not installed: make dev")


@pytest.fixture(scope="session")
def shared_impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """The impatient server of the session. Tests use `impatient`."""
    constants = {"server.http.streams.PING_S": 0.3, "server.routes.fal.realtime.IDLE_S": 2.0}
    folder = tmp_path_factory.mktemp("impatient")
    yield from _served(serve(folder, "--allow-private-cidr", "127.0.0.0/8", constants=constants))


@pytest.fixture
def impatient(shared_impatient: Scripted) -> Iterator[Scripted]:
    """An open server that soon calls silence silence, and fetches pictures from this machine."""
    yield shared_impatient
    shared_impatient.open_all()


@pytest.fixture(scope="session")
def shared_proxied(shared_server: Scripted) -> Iterator[Child]:
    """One `fal_client` process for the session behind the server's CONNECT proxy. Tests use `proxied`."""
    yield from _living(proxied_child(shared_server.server))


@pytest.fixture
def proxied(server: Scripted, shared_proxied: Child) -> Child:
    """`fal_client` against the open server, its fixed REST and CDN hosts too: as `env --client python-proxy` says."""
    return shared_proxied
