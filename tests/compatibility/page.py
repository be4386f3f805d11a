"""The page docs/compatibility.md: prose written by hand, and between marks tables that are drawn from results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from server.api import clients
from server.api.clients import OPEN_KEY, ServerAddress
from tests.compatibility.rows import ROWS, Row
from tests.conformance.reasons import REASONS

CASES = range(1, 111)
DEFAULT = ServerAddress("http://127.0.0.1:8000", "https://127.0.0.1:8443", Path("data/tls/ca-bundle.pem"), OPEN_KEY)
"""An open server with the default ports, for the lines that the page shows."""
_RANK = {"failed": 0, "passed": 1, "skipped": 2, "not run": 3}
_WORDS = {"passed": "green", "failed": "**fails**", "skipped": "not run", "not run": "not run"}


@dataclass(frozen=True)
class Proof:
    """What tests proved about one row or case. Args: reason: why it was skipped. tests: their names as sentences."""

    outcome: str = "not run"
    reason: str = ""
    tests: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)

    def with_those_of(self, other: Proof | None) -> Proof:
        """Both together: it fails if one fails, and what one did not run, the other may have."""
        if other is None:
            return self
        first = min(other, self, key=lambda proof: _RANK[proof.outcome])
        tests = list(dict.fromkeys([*other.tests, *self.tests]))
        return Proof(first.outcome, first.reason, tests, list(dict.fromkeys([*other.clients, *self.clients])))

    @property
    def words(self) -> str:
        """The outcome for a reader."""
        return f"{_WORDS[self.outcome]}: {self.reason}" if self.reason else _WORDS[self.outcome]


@dataclass
class Results:
    """What runs have proved. Args: clients: by row title. cases: by number. run_on: where the latest ran."""

    run_on: str = ""
    clients: dict[str, Proof] = field(default_factory=dict)
    cases: dict[str, Proof] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Results:
        data = json.loads(text)
        read = {kind: {name: Proof(**proof) for name, proof in data[kind].items()} for kind in ("clients", "cases")}
        return cls(data["run_on"], **read)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def merged_with(self, newer: Results) -> Results:
        """These results, and in their place the newer ones of what was run anew; rows that are gone fall out."""
        titles = [row.title for row in ROWS]
        return Results(
            newer.run_on,
            _in_order(titles, self.clients, newer.clients),
            _in_order([str(number) for number in CASES], self.cases, newer.cases),
        )


def _in_order(names: list[str], old: Mapping[str, Proof], new: Mapping[str, Proof]) -> dict[str, Proof]:
    ran = {name: proof for name, proof in new.items() if proof.outcome != "not run"}
    everything = {**new, **old, **ran}
    return {name: everything[name] for name in names if name in everything}


def filled(text: str, results: Results) -> str:
    """The page with its tables drawn anew."""
    parts = {"clients": client_table(results), "set-ups": setups(), "cases": case_table(results)}
    for name, drawn in parts.items():
        begin, end = f"<!-- {name}: made by make compatibility -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert pattern.search(text), f"docs/compatibility.md has lost its mark {begin}"
        replacement = f"{begin}\n\n{drawn}\n\n{end}"
        text = pattern.sub(lambda _, replacement=replacement: replacement, text)  # type: ignore[misc]
    return text


def client_table(results: Results) -> str:
    """One line a row: what was run, how it was set up, and what came of it."""
    lines = ["| client | version | `fluxserve env --client` | what it did here | result |", "|---|---|---|---|---|"]
    lines += [_client_line(row, results.clients.get(row.title, Proof())) for row in ROWS]
    return "\n".join([f"Run on {results.run_on}.", "", *lines])


def _client_line(row: Row, proof: Proof) -> str:
    limits = [f"cannot be moved: `{operation}` {why}" for operation, why in row.limits.items()]
    result = "; ".join([proof.words, *limits])
    did = "; ".join(row.operations)
    return f"| {row.name} | {row.version} | `{row.setup}` | {did} | {result} |"


def case_table(results: Results) -> str:
    """One line a numbered case."""
    lines = ["| case | what is proven | by | result |", "|---|---|---|---|"]
    for number in CASES:
        proof = results.cases.get(str(number), Proof(reason=REASONS.get(number, "")))
        lines.append(f"| {number} | {'; '.join(proof.tests)} | {_shortly(proof.clients)} | {proof.words} |")
    return "\n".join(lines)


def _shortly(names: list[str]) -> str:
    """A case that many rows prove names how many."""
    return ", ".join(names) if len(names) <= 2 else f"{len(names)} rows above"


def setups() -> str:
    """The lines of every set-up, as `fluxserve env` prints them for an open server with the default ports."""
    blocks = []
    for name, setup_of in clients.CLIENTS.items():
        setup = setup_of(DEFAULT)
        is_shell = not setup.lines[0].startswith(("import ", "const "))
        code = "\n".join(setup.lines)
        notes = "\n\n" + " ".join(setup.notes) if setup.notes else ""
        blocks.append(f"**`{name}`**: {setup.title}\n\n```{'sh' if is_shell else 'js'}\n{code}\n```{notes}")
    return "\n\n".join(blocks)
