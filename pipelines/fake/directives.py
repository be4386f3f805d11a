"""What a prompt asks the fake engine to do: `a red circle [[crash at=3 once]] [[step_ms=500]]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from models.fake import FAULTS

_DIRECTIVE = re.compile(r"\[\[([^\[\]]*)\]\]")
_STEP_MS = re.compile(r"step_ms=(\d{1,7}(?:\.\d+)?)")
_AT = re.compile(r"at=(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Directive:
    """One fault. Args: at: after so many steps; 0 before it starts. once: only in the first run of a request."""

    fault: str
    at: int = 1
    once: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """All that one request asks for. Args: step_ms: its own pace; None takes the engine's."""

    directives: tuple[Directive, ...] = ()
    step_ms: float | None = None

    def due(self, done: int, epoch: int, num_steps: int) -> Iterator[str]:
        """The faults that strike after `done` of `num_steps` steps, but never after the last one."""
        for directive in self.directives:
            if min(directive.at, num_steps - 1) == done and not (directive.once and epoch > 1):
                yield directive.fault

    def but_also(self, faults: Iterable[str]) -> Script:
        """These strike, too."""
        return replace(self, directives=(*self.directives, *map(Directive, faults)))


def read_script(prompt: str) -> Script:
    """Raises: ValueError with one sentence about what cannot be meant."""
    directives: list[Directive] = []
    step_ms: float | None = None
    for text in _DIRECTIVE.findall(prompt):
        if pace := _STEP_MS.fullmatch(text.strip()):
            step_ms = float(pace[1])
        else:
            directives.append(_directive(text))
    return Script(tuple(directives), step_ms)


def _directive(text: str) -> Directive:
    name, *words = text.split() or [""]
    at, once = 1, False
    for word in words:
        if (number := _AT.fullmatch(word)) is not None:
            at = int(number[1])
        elif word == "once":
            once = True
        else:
            raise ValueError(f"[[{text}]]: after a fault come at=STEP and once")
    if name not in FAULTS:
        raise ValueError(f"[[{text}]] is none of {', '.join(FAULTS)} and step_ms=NUMBER")
    return Directive(name, at, once)
