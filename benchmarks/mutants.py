"""Changes one thing at a time in the code that must not lose anything, and counts which changes its own tests notice.

    python -m benchmarks.mutants [--mutants 300] [--seed 1] [--only receivers,limits] [--patience 240]

Works in a copy of the checkout. A mutant is one comparison, `and`/`or`, `not` or sign changed, or one call statement
taken away; it is killed when a test of its files fails or takes too long. Prints each survivor, and one JSON line last.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.stamp import stamp

ROOT = Path(__file__).parents[1]
TARGETS: dict[str, tuple[str, ...]] = {
    "server/jobs/store/transitions.py": (
        "tests/server/jobs/test_store.py",
        "tests/server/jobs/test_controls.py",
        "tests/server/jobs/test_store_machine.py",
    ),
    "server/jobs/store/repeats.py": ("tests/server/jobs/test_store.py", "tests/server/routes/test_repeats.py"),
    "server/jobs/store/sqlite.py": (
        "tests/server/jobs/test_store.py",
        "tests/server/jobs/test_store_sqlite.py",
        "tests/server/jobs/test_accounts.py",
    ),
    "server/jobs/store/outbox.py": (
        "tests/server/jobs/test_store.py",
        "tests/server/jobs/test_store_sqlite.py",
        "tests/server/cli/test_cli_webhooks.py",
    ),
    "server/jobs/store/fair.py": ("tests/server/jobs/test_store.py", "tests/server/jobs/test_store_sqlite.py"),
    "server/jobs/store/queue_index.py": ("tests/server/jobs/test_store.py", "tests/server/jobs/test_store_sqlite.py"),
    "server/jobs/dispatcher.py": ("tests/server/jobs/test_dispatcher.py",),
    "server/jobs/receivers.py": ("tests/server/jobs/test_webhooks.py",),
    "server/jobs/webhooks.py": ("tests/server/jobs/test_webhooks.py",),
    "server/jobs/limits.py": ("tests/server/jobs/test_limits.py", "tests/server/gateway/test_keys.py"),
    "server/jobs/room.py": ("tests/server/jobs/test_room.py",),
    "server/files/objects.py": (
        "tests/server/files/test_objects.py",
        "tests/server/jobs/test_room.py",
        "tests/benchmarks/test_power_cuts.py",
    ),
    "server/gateway/keys.py": ("tests/server/gateway/test_keys.py", "tests/server/routes/test_tenants.py"),
    "server/gateway/key_file.py": ("tests/server/gateway/test_keys.py", "tests/server/routes/test_tenants.py"),
    "server/gateway/guesses.py": ("tests/server/gateway/test_keys.py", "tests/server/routes/test_tenants.py"),
    "server/gateway/tokens.py": ("tests/server/gateway/test_tokens.py",),
    "server/http/outgoing.py": ("tests/server/http/test_outgoing.py", "tests/server/http/test_hostile_urls.py"),
    "pipelines/engine/scheduler.py": ("tests/pipelines/engine/test_scheduler.py",),
    "pipelines/engine/engine.py": ("tests/pipelines/engine/test_engine.py",),
}
_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the text of the whole file after it, and where and what it is."""

    file: str
    line: int
    what: str
    text: str


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every change that is tried in one file."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    for index, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            fresh = copy.deepcopy(tree)
            change(list(ast.walk(fresh))[index])
            found.append(Mutant(file, getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(fresh))))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            other = _OPPOSITES[type(operator)]

            def turn(it: Any, place: int = place, other: type[ast.cmpop] = other) -> None:
                it.ops[place] = other()

            yield f"{type(operator).__name__} -> {other.__name__} in {ast.unparse(node)[:80]}", turn
    elif isinstance(node, ast.BoolOp):
        other_bool = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"-> {other_bool.__name__} in {ast.unparse(node)[:80]}", lambda it: setattr(it, "op", other_bool())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"not taken away in {ast.unparse(node)[:80]}", _twice
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        sign = ast.Sub if isinstance(node.op, ast.Add) else ast.Add
        if not any(isinstance(part, ast.JoinedStr | ast.Constant) and _is_text(part) for part in ast.walk(node)):
            yield f"-> {sign.__name__} in {ast.unparse(node)[:80]}", lambda it: setattr(it, "op", sign())
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and "log" not in ast.unparse(node.value.func):
        yield f"without {ast.unparse(node)[:80]}", lambda it: setattr(it, "value", ast.Constant(None))


def _twice(node: Any) -> None:
    """`not not x` in the place of `not x`."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def is_killed(mutant: Mutant, checkout: Path, patience_s: float) -> bool:
    """Whether the file's tests notice it."""
    path = checkout / mutant.file
    whole = path.read_text()
    path.write_text(mutant.text)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TARGETS[mutant.file]]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(checkout)}
    try:
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=patience_s)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(whole)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="names of files, comma-separated")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for the tests of one mutant")
    arguments = parser.parse_args()
    wanted = [file for file in TARGETS if not arguments.only or Path(file).stem in arguments.only.split(",")]
    everything = [mutant for file in wanted for mutant in mutants_of(file, (ROOT / file).read_text())]
    chosen = random.Random(arguments.seed).sample(everything, min(arguments.mutants, len(everything)))
    killed: Counter[str] = Counter()
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        left_out = shutil.ignore_patterns(".venv*", ".git", "node_modules", "data", "*cache*", "__pycache__")
        shutil.copytree(ROOT, checkout, ignore=left_out)
        # An interrupt ends the trying, not the report.
        with suppress(KeyboardInterrupt):
            for mutant in chosen:
                where = f"{mutant.file}:{mutant.line} {mutant.what}"
                if is_killed(mutant, checkout, arguments.patience):
                    killed[mutant.file] += 1
                else:
                    survivors.append(where)
                    print(f"survived: {where}", flush=True)
                print(f"{killed.total()} of {killed.total() + len(survivors)} killed; {where}", file=sys.stderr)
    tried = killed.total() + len(survivors)
    report = {"benchmark": "mutants", "tried": tried, "of": len(everything), "killed": killed.total()}
    print(json.dumps(report | {"killed_by_file": killed, "survivors": survivors, "stamp": stamp()}), flush=True)


if __name__ == "__main__":
    main()
