"""A node with scripted workers over a shared database, as a process: tests kill, freeze and misguide it.

    python -m tests.cluster.node DATA_DIR [SETTING=VALUE ...]

Values are JSON. Prints its port once it takes requests. Environment: CLUSTER_LEASE_S, how long its claims last without
a renewal; CLUSTER_CLOCK_S, how far its wall clock is ahead; the rest as `tests.server.scripted_worker`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if ahead_s := float(os.environ.get("CLUSTER_CLOCK_S", "0")):
    _true = time.time
    time.time = lambda: _true() + ahead_s  # before anybody has taken the function, or the time

from server.app import create_app
from server.http import serving
from server.jobs import dispatcher
from server.jobs.store.postgres import writer
from server.node import Node
from server.settings import Settings

SCRIPTED = (sys.executable, "-m", "tests.server.scripted_worker")


def main() -> None:
    if lease_s := float(os.environ.get("CLUSTER_LEASE_S", "0")):
        dispatcher.LEASE_S, dispatcher.RENEW_S = lease_s, lease_s / 4
        writer.GRACE_S = lease_s
    more = {name: json.loads(value) for name, _, value in (word.partition("=") for word in sys.argv[2:])}
    listeners = serving.listen("127.0.0.1", more.pop("port", 0), 0)
    usual: dict[str, Any] = {"data_dir": Path(sys.argv[1]), "models": ("random:tiny",), "device": "cpu"}
    node = Node.from_settings(Settings(**(usual | more)), SCRIPTED)

    async def tell() -> None:
        while not node.ready:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.02)
        print(listeners.port, flush=True)

    serving.run(create_app(node, listeners.port), listeners, None, tell)


if __name__ == "__main__":
    main()
