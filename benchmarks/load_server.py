"""A whole server over an engine that only pretends to draw (`--model fake:`), so that the node alone is measured.

    python -m benchmarks.load_server DATA_DIR [SETTING=VALUE ...]

Values are JSON: hang_s=0.5 or models=["fake:step_ms=5"]. Prints its port once it takes requests. Any other model is
played by the tests' scripted worker, which keeps a journal of its runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from server.app import create_app
from server.http import serving
from server.node import Node
from server.settings import Settings

SCRIPTED = (sys.executable, "-m", "tests.server.scripted_worker")


def main() -> None:
    more = {name: json.loads(value) for name, _, value in (word.partition("=") for word in sys.argv[2:])}
    listeners = serving.listen("127.0.0.1", more.pop("port", 0), 0)
    usual: dict[str, Any] = {"data_dir": Path(sys.argv[1]), "models": ("fake:",), "device": "cpu"}
    settings = Settings(**(usual | more))
    node = Node.from_settings(settings, None if settings.models[0].startswith("fake:") else SCRIPTED)

    async def tell() -> None:
        while not node.ready:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.05)
        print(listeners.port, flush=True)

    serving.run(create_app(node), listeners, None, tell)


if __name__ == "__main__":
    main()
