"""What `--model fake:` means: an engine that only pretends to draw, with its pace and its faults as options. No torch.

fake:                              draws at once-a-step pace, never fails
fake:step_ms=110:batch=4:load_s=5  as slow as a card
fake:crash=100:oom=20              every hundredth request ends the process, every twentieth finds no memory
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from models.registry import ModelSpec

PREFIX = "fake:"

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "fail": "the request fails, as by a fault of the model in it",
        "refuse": "the request fails as an input that the model cannot take, at its field `prompt`",
        "oom": "the request finds no memory, not even alone",
        "internal": "the worker has a fault; the request runs again elsewhere until no attempt is left",
        "crash": "the worker process is killed in the middle of it",
        "hang": "the worker process stops answering",
        "nsfw": "the picture is flagged and black, unless the safety checker is off",
    }
)
"""What can be asked for, by an option `NAME=N` (every Nth request of a process) or in a prompt as `[[NAME]]`."""

_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """How an engine pretends.

    Args:
        step_ms: a step of all that is drawn together, in ms.
        load_s: before it is ready, in seconds.
        batch: requests that are drawn at once; more wait in the worker.
        every: fault -> it strikes every so many-th request that a process begins.
    """

    step_ms: float = 20.0
    load_s: float = 0.0
    batch: int = 8
    every: Mapping[str, int] = field(default_factory=dict)


def parse_options(argument: str) -> FakeOptions:
    """The options of a `--model` argument that begins with `fake:`. Raises: ValueError with one sentence."""
    given: dict[str, float] = {}
    for word in filter(None, argument.removeprefix(PREFIX).split(":")):
        name, equals, value = word.partition("=")
        if not equals or not _NUMBER.fullmatch(value):
            raise ValueError(f"--model {argument}: {word!r} is no option; options are NAME=NUMBER with colons between")
        given[name] = float(value)
    every = {name: int(given.pop(name)) for name in FAULTS if name in given}
    batch = int(given.pop("batch", FakeOptions().batch))
    pace = {name: given.pop(name) for name in ("step_ms", "load_s") if name in given}
    if given:
        known = ", ".join(("step_ms", "load_s", "batch", *FAULTS))
        raise ValueError(f"--model {argument}: there is no option {next(iter(given))!r}; there are {known}")
    if batch < 1 or not all(every.values()):
        raise ValueError(f"--model {argument}: batch and faults are whole numbers from 1")
    return FakeOptions(**pace, batch=batch, every=every)


def fake_spec(argument: str) -> ModelSpec:
    """The checkpoint that is pretended. Raises: ValueError."""
    parse_options(argument)
    return ModelSpec(name="fake", source=argument, licence="none (no model)", summary="pretends to draw, for tests")
