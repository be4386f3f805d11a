"""How a command ends when it cannot do its work: one sentence on stderr and an exit code."""

from __future__ import annotations

FAILED = 1
USAGE = 2
ENVIRONMENT = 3


class CommandError(Exception):
    """The command stops here; `code` becomes its exit status."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
