"""What a benchmark asks of the thing it measures; an engine and an API answer alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.bench.scenarios import Ask

OnLoading = Callable[[str, float], None]
"""(stage in words, fraction done)"""


class BenchError(Exception):
    """The benchmark cannot go on; the message is one sentence for the user."""


class AskError(Exception):
    """One request ended without a picture; it is counted as failed."""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What answered. None where it cannot be known, as from an API elsewhere.

    Args: device: as `--device` names it. is_local: whether its GPU is in this machine, so that NVML can be asked.
    """

    device: str | None = None
    device_name: str | None = None
    dtype: str | None = None
    is_local: bool = False


class Target(Protocol):
    """Opened once, asked many times at once, closed once."""

    async def open(self, on_loading: OnLoading) -> TargetFacts:
        """Return when it takes requests. Raises: BenchError."""

    async def generate(self, ask: Ask) -> dict[str, float]:
        """Return once the picture is there: seconds by stage, as far as they are told. Raises: AskError, BenchError."""

    async def memory(self) -> dict[str, int]:
        """Bytes by name, as the worker counts them; empty where that is not told."""

    def notes(self) -> list[str]:
        """What it did otherwise than asked, each sentence once."""

    async def close(self) -> None: ...
