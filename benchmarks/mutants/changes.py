"""The changes that are tried in one file of source: each makes one mutant, the text of the whole file after it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Change = tuple[str, Callable[[Any], None]]
_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_SMALL = (0, 1, 2)
_PLAIN = (ast.Name, ast.Attribute, ast.Call)
_TELLING = ("log", "warn")
"""Calls that only tell a person something; no test reads every sentence."""


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, what it is, and the whole text of the file after it."""

    file: str
    place: str
    what: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.place} {self.what}"


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every change that is tried in one file, in the order of the syntax tree."""
    tree = ast.parse(source)
    inside = {id(node) for function in _functions(tree) for node in ast.walk(function)}
    found: list[Mutant] = []
    for index, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node, id(node) in inside):
            fresh = copy.deepcopy(tree)
            change(list(ast.walk(fresh))[index])
            place = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
            found.append(Mutant(file, place, what, ast.unparse(ast.fix_missing_locations(fresh))))
    return found


def _functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The bodies whose constants are decisions; those of modules and classes are settings, which nothing asserts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from node.body


def _changes(node: ast.AST, inside: bool) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        yield from _comparisons(node)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"-> {other.__name__} in {_text(node)}", lambda it: setattr(it, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"not taken away in {_text(node)}", lambda it: setattr(it, "operand", _negated(it.operand))
    elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub) and not _is_text(node):
        sign = ast.Sub if isinstance(node.op, ast.Add) else ast.Add
        yield f"-> {sign.__name__} in {_text(node)}", lambda it: setattr(it, "op", sign())
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and isinstance(
        node.test, ast.Name | ast.Attribute | ast.Call
    ):
        yield f"negated: {_text(node.test)}", lambda it: setattr(it, "test", _negated(it.test))
    elif isinstance(node, ast.Expr):
        yield from _calls(node)
    elif isinstance(node, ast.Constant) and inside:
        yield from _constants(node)


def _comparisons(node: ast.Compare) -> Iterator[Change]:
    for place, operator in enumerate(node.ops):
        other = _OPPOSITES[type(operator)]

        def turn(it: Any, place: int = place, other: type[ast.cmpop] = other) -> None:
            it.ops[place] = other()

        yield f"{type(operator).__name__} -> {other.__name__} in {_text(node)}", turn


def _calls(node: ast.Expr) -> Iterator[Change]:
    call = node.value.value if isinstance(node.value, ast.Await) else node.value
    if isinstance(call, ast.Call) and not any(word in ast.unparse(call.func).lower() for word in _TELLING):
        yield f"without {_text(node)}", lambda it: setattr(it, "value", ast.Constant(None))


def _constants(node: ast.Constant) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda it: setattr(it, "value", not it.value)
    elif isinstance(node.value, int) and node.value in _SMALL:
        yield f"{node.value} -> {node.value + 1}", lambda it: setattr(it, "value", it.value + 1)


def _negated(node: Any) -> ast.UnaryOp:
    return ast.UnaryOp(ast.Not(), node)


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in ast.walk(node)
    )


def _text(node: ast.AST) -> str:
    return ast.unparse(node)[:80]
