"""What every program here does: the operations named in argv, one after the other, each told as a JSON line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

ENDPOINT, INPUT, OPERATIONS = json.loads(sys.argv[1])
FILE = b"what was uploaded"


def perform(doing: Mapping[str, Callable[[], Any]]) -> None:
    """Do what was asked for; what an operation raises is told, too."""
    for operation in OPERATIONS:
        try:
            answer = {"value": doing[operation]()}
        except Exception as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps({"operation": operation} | answer), flush=True)
