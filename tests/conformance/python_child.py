"""Runs pieces of code against the unmodified `fal_client`: JSON lines in, JSON lines out. See `child.py`.

A piece sees `fal_client`, `time`, `asyncio`, `os` and its own variables, and may await.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
import time
from typing import Any

import fal_client

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what the client prints is for a reader, not for the test


def facts_of(error: Exception) -> dict[str, Any]:
    """The public fields of an error."""
    response = getattr(error, "response", None)
    return {
        "name": type(error).__name__,
        "text": str(error),
        "status": getattr(error, "status_code", None),
        "message": getattr(error, "message", None),
        "error_type": getattr(error, "error_type", None),
        "headers": dict(response.headers) if response is not None else {},
        "request_id": getattr(error, "request_id", None),
        "code": getattr(error, "error_code", None) or getattr(error, "code", None),
    }


async def run(code: str, names: dict[str, Any]) -> Any:
    scope = {"fal_client": fal_client, "time": time, "asyncio": asyncio, "os": os, **names}
    exec("async def piece():\n" + textwrap.indent(code, "    "), scope)
    return await scope["piece"]()


def answer_of(loop: asyncio.AbstractEventLoop, line: str) -> dict[str, Any]:
    job = json.loads(line)
    try:
        return {"value": loop.run_until_complete(run(job["code"], job["names"]))}
    except Exception as error:
        return {"error": facts_of(error)}


def main() -> None:
    loop = asyncio.new_event_loop()  # one for all: the client keeps connections
    for line in sys.stdin:
        answers.write(json.dumps(answer_of(loop, line)) + "\n")


main()
