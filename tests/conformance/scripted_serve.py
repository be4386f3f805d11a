"""`fluxserve`, command line and all, except that its workers follow a script and every request is written down.

    SCRIPTED_RECORD=FILE SCRIPTED_CONSTANTS='{"server.jobs.webhooks.POLL_S": 0.05}' \
        python -m tests.conformance.scripted_serve serve --port N ...

Constants that make a user wait (timeouts, pauses) may be given other values by their dotted names. Endpoints with ids
of every form that fal knows are added to ours.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp

from server.cli.main import main
from tests.conformance import picture_endpoint
from tests.conformance.recording import Recorder

MORE_IDS = ("workflows/me/flow/x", "comfy/me/flow", "1234/my-app")
WORKER = (sys.executable, "-m", "tests.server.scripted_worker")


def set_constants() -> None:
    for name, value in json.loads(os.environ.get("SCRIPTED_CONSTANTS", "{}")).items():
        module, _, constant = name.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, constant), name
        setattr(owner, constant, value)


def add_endpoints() -> None:
    from server.api.endpoints import ENDPOINTS

    for name in MORE_IDS:
        ENDPOINTS[name] = replace(ENDPOINTS["fal-ai/flux/dev"], id=name)


def use_scripted_workers() -> None:
    from server.node import Node
    from server.settings import Settings

    real = Node.from_settings

    def from_settings(settings: Settings) -> Node:
        return real(settings, worker_command=WORKER)

    Node.from_settings = from_settings  # type: ignore[assignment]


def record_requests() -> None:
    from server import app

    real = app.create_app

    def create_app(node: object, plain_port: int) -> ASGIApp:
        inner: ASGIApp = real(node, plain_port)  # type: ignore[arg-type]
        return Recorder(inner, Path(os.environ["SCRIPTED_RECORD"]))

    app.create_app = create_app  # type: ignore[assignment]


if __name__ == "__main__":
    set_constants()
    add_endpoints()
    picture_endpoint.install()
    use_scripted_workers()
    record_requests()
    main()
