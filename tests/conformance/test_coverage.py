"""The checklist itself: every numbered case has a test that is named by it, or a written reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.reasons import REASONS
from tests.conformance.test_conform import ONLY_HERE

CASES = range(1, 111)
TESTS = Path(__file__).parents[1]
NEVER_RUN = {"skip", "xfail"}


def functions() -> Iterator[ast.FunctionDef]:
    """Every test function of the tree, read and not imported."""
    for file in sorted(TESTS.glob("*/test_*.py")):
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def marks(function: ast.FunctionDef) -> dict[str, list[int]]:
    """Its pytest marks, with their numbers."""
    found: dict[str, list[int]] = {}
    for decorator in function.decorator_list:
        text = ast.unparse(decorator)
        if text.startswith("pytest.mark."):
            arguments = decorator.args if isinstance(decorator, ast.Call) else []
            values = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
            numbers = [value for value in values if isinstance(value, int)]
            found.setdefault(text.removeprefix("pytest.mark.").partition("(")[0], []).extend(numbers)
    return found


def test_every_case_has_its_test() -> None:
    proven = set(ONLY_HERE)
    for function in functions():
        if not (cases := marks(function).get("case", [])):
            continue
        assert len(cases) == 1, f"{function.name} stands for several cases"
        assert function.name.startswith(f"test_{cases[0]:03d}_"), f"{function.name} is marked as case {cases[0]}"
        assert not NEVER_RUN & set(marks(function)), f"{function.name} never runs"
        proven.add(cases[0])
    assert proven | set(REASONS) == set(CASES)
    assert not proven & set(REASONS), "a case that is tested needs no excuse"
    assert all(len(reason.split()) > 5 for reason in REASONS.values())
