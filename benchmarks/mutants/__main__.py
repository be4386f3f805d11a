"""Changes one thing at a time in the code that must not lose anything, and counts which changes its own tests notice.

    python -m benchmarks.mutants [--mutants 300] [--seed 1] [--only receivers,limits] [--log mutants.jsonl] [--again]

Works in a copy of the checkout. A mutant is one comparison, condition, `and`/`or`, sign or small constant changed, or
one call statement taken away; each file gives its share of the sample. It is killed when a test of its file fails (late
ones twice), or when the tests hang. With `--log` what was tried is kept, and the next run goes on from there; `--again`
tries the survivors of the log once more. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mutants.changes import Mutant, mutants_of
from benchmarks.mutants.trial import ROOT, Checkout
from server.bench.stamp import stamp

STORE = "tests/server/jobs/test_store.py"
SQLITE = "tests/server/jobs/test_store_sqlite.py"
KEYS = ("tests/server/gateway/test_keys.py", "tests/server/routes/test_tenants.py")
TARGETS: dict[str, tuple[str, ...]] = {
    "server/jobs/store/transitions.py": (
        STORE,
        "tests/server/jobs/test_controls.py",
        "tests/server/jobs/test_store_machine.py",
    ),
    "server/jobs/store/repeats.py": (STORE, "tests/server/routes/test_repeats.py"),
    "server/jobs/store/sqlite.py": (STORE, SQLITE),
    "server/jobs/store/sql.py": (
        STORE,
        SQLITE,
        "tests/server/jobs/test_accounts.py",
        "tests/server/jobs/test_controls.py",
        "tests/server/jobs/test_budgets.py",
    ),
    "server/jobs/store/outbox.py": (STORE, SQLITE, "tests/server/cli/test_cli_webhooks.py"),
    "server/jobs/store/fair.py": ("tests/server/jobs/test_fair.py", STORE, SQLITE),
    "server/jobs/store/queue_index.py": (STORE, SQLITE),
    "server/jobs/store/budgets.py": ("tests/server/jobs/test_budgets.py", "tests/server/jobs/test_limits.py"),
    "server/jobs/store/kept_input.py": (STORE,),
    "server/jobs/store/reading.py": (STORE, SQLITE),
    "server/jobs/preparation.py": ("tests/server/jobs/test_preparation.py",),
    "server/jobs/result_cache.py": ("tests/server/test_result_cache.py",),
    "server/api/body.py": ("tests/server/api/test_body.py", "tests/server/routes/test_queue.py"),
    "server/http/pacing.py": ("tests/server/http/test_pacing.py", KEYS[1]),
    "server/jobs/dispatcher.py": ("tests/server/jobs/test_dispatcher.py",),
    "server/jobs/receivers.py": ("tests/server/jobs/test_webhooks.py",),
    "server/jobs/webhooks.py": ("tests/server/jobs/test_webhooks.py",),
    "server/jobs/limits.py": ("tests/server/jobs/test_limits.py", "tests/server/jobs/test_budgets.py", KEYS[0]),
    "server/jobs/room.py": ("tests/server/jobs/test_room.py",),
    "server/files/objects.py": (
        "tests/server/files/test_objects.py",
        "tests/server/files/test_addresses.py",
        "tests/server/files/test_inputs.py",
        "tests/server/routes/test_signed_files.py",
        "tests/server/jobs/test_room.py",
        "tests/benchmarks/test_power_cuts.py",
    ),
    "server/gateway/keys.py": KEYS,
    "server/gateway/key_file.py": KEYS,
    "server/gateway/guesses.py": KEYS,
    "server/gateway/tokens.py": ("tests/server/gateway/test_tokens.py",),
    "server/http/outgoing.py": ("tests/server/http/test_outgoing.py", "tests/server/http/test_hostile_urls.py"),
    "pipelines/engine/scheduler.py": ("tests/pipelines/engine/test_scheduler.py",),
    "pipelines/engine/engine.py": (
        "tests/pipelines/engine/test_engine.py",
        "tests/pipelines/engine/test_acceleration.py",
    ),
}
LEAST_OF_A_FILE = 4
PATIENCE_S = 30.0
"""Besides twice what the file's tests took as they are."""
LATE_S = 5.0
"""A test that fails, and took so much longer than twice its usual time, is tried again."""


@dataclass
class Log:
    """What was tried: a line of JSON each, kept in a file if one is named."""

    path: Path | None
    tried: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                self.tried[entry["mutant"]] = entry

    def add(self, mutant: Mutant, killed: bool, by: str | None) -> None:
        entry = {"mutant": mutant.name, "file": mutant.file, "killed": killed, "by": by}
        self.tried[mutant.name] = entry
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def sample(number: int, seed: int) -> tuple[list[Mutant], int]:
    """About `number` mutants, from each file by its share, and how many there are altogether."""
    of_file = {file: mutants_of(file, (ROOT / file).read_text()) for file in TARGETS}
    total = sum(map(len, of_file.values()))
    chosen: list[Mutant] = []
    for file, mutants in of_file.items():
        share = max(LEAST_OF_A_FILE, round(number * len(mutants) / total))
        chosen += random.Random(f"{seed} {file}").sample(mutants, min(share, len(mutants)))
    return chosen, total


class Trials:
    """Mutants of one copy of the checkout, tried one after another."""

    def __init__(self, checkout: Checkout, log: Log) -> None:
        self._checkout = checkout
        self._log = log
        self._usual: dict[str, dict[str, float]] = {}

    def try_one(self, mutant: Mutant) -> bool:
        """Whether it is killed."""
        usual = {test: took for tests in TARGETS[mutant.file] for test, took in self._as_it_is(tests).items()}
        whole = self._checkout.read(mutant.file)
        self._checkout.write(mutant.file, mutant.text)
        try:
            by = self._killer(mutant.file, usual)
        finally:
            self._checkout.write(mutant.file, whole)
        self._log.add(mutant, by is not None, by)
        return by is not None

    def _killer(self, file: str, usual: dict[str, float]) -> str | None:
        patience_s = PATIENCE_S + 2 * sum(usual.values())
        verdict = self._checkout.test(TARGETS[file], patience_s, usual)
        by = verdict.failed
        is_late = by in usual and verdict.took.get(by, 0.0) > LATE_S + 2 * usual[by]
        # It may be the machine that is late; a mutant is so twice.
        if by is not None and is_late and self._checkout.test([by], patience_s).passed:
            verdict = self._checkout.test(TARGETS[file], patience_s, usual)
        return "time" if verdict.timed_out else verdict.failed

    def _as_it_is(self, tests: str) -> dict[str, float]:
        """The seconds of each test of a file. Raises SystemExit if they fail as they are."""
        if tests not in self._usual:
            for _ in range(3):
                verdict = self._checkout.test([tests], 900)
                self._checkout.load(verdict.libraries)
                if verdict.passed:
                    break
            else:
                sys.exit(f"{tests} fails as it is: {verdict.failed or 'it hangs'}")
            self._usual[tests] = verdict.took
        return self._usual[tests]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="the sample's part in these files: names without .py, commas")
    parser.add_argument("--log", type=Path, help="a file that keeps what was tried")
    parser.add_argument("--again", action="store_true", help="try the survivors of the log once more")
    arguments = parser.parse_args()
    chosen, total = sample(arguments.mutants, arguments.seed)
    if arguments.only:
        chosen = [mutant for mutant in chosen if Path(mutant.file).stem in arguments.only.split(",")]
    log = Log(arguments.log)
    log.read()
    left = [mutant for mutant in chosen if _is_open(log.tried.get(mutant.name), arguments.again)]
    # An interrupt ends the trying, not the report.
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        trials = Trials(Checkout(Path(folder)), log)
        for number, mutant in enumerate(left, 1):
            verdict = "killed" if trials.try_one(mutant) else "SURVIVED"
            print(f"{number} of {len(left)} {verdict}: {mutant.name}", file=sys.stderr, flush=True)
    print(json.dumps(report(chosen, total, log) | {"stamp": stamp()}), flush=True)


def _is_open(entry: dict[str, Any] | None, again: bool) -> bool:
    return entry is None or (again and not entry["killed"])


def report(chosen: list[Mutant], total: int, log: Log) -> dict[str, Any]:
    """The figures of the mutants that were chosen and tried."""
    tried = [log.tried[mutant.name] for mutant in chosen if mutant.name in log.tried]
    killed = Counter(entry["file"] for entry in tried if entry["killed"])
    return {
        "benchmark": "mutants",
        "tried": len(tried),
        "of": total,
        "killed": killed.total(),
        "killed_percent": round(100 * killed.total() / max(1, len(tried)), 1),
        "by_file": {file: [killed[file], number] for file, number in Counter(e["file"] for e in tried).items()},
        "survivors": [entry["mutant"] for entry in tried if not entry["killed"]],
    }


if __name__ == "__main__":
    main()
