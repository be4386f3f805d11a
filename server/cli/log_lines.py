"""The server's own log: lines for people, or one JSON object a line for programs that collect them."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

from server.cli.output import PatientWriter

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_REQUEST = re.compile(r"\brequest(?: |_id=)([0-9A-Za-z_-]{20,64})\b")
"""How messages name a request."""


class JsonLines(logging.Formatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`; `request_id` where one is named, `exception` where there is
    one."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        if (named := _REQUEST.search(message)) is not None:
            entry["request_id"] = named[1]
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_to(stream: PatientWriter, form: str) -> None:
    """Have everything from INFO on written there. Args: form: text or json."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
