"""Faults that a prompt asks for."""

from __future__ import annotations

import pytest

from pipelines.fake.directives import read_script


def due(prompt: str, done: int, epoch: int = 1, num_steps: int = 4) -> list[str]:
    return list(read_script(prompt).due(done, epoch, num_steps))


def test_a_plain_prompt_asks_for_nothing() -> None:
    assert [due("a [red] circle", done) for done in range(4)] == [[], [], [], []]


def test_a_fault_strikes_after_the_first_step_or_where_it_says() -> None:
    assert [due("a fox [[oom]]", done) for done in range(4)] == [[], ["oom"], [], []]
    assert [due("[[ crash at=3 ]] a fox", done) for done in range(4)] == [[], [], [], ["crash"]]
    assert due("[[fail at=0]]", 0) == ["fail"]


def test_no_fault_comes_after_the_last_step() -> None:
    assert due("[[oom at=99]]", 3) == ["oom"]
    assert due("[[oom]]", 0, num_steps=1) == ["oom"]


def test_once_is_the_first_run_only() -> None:
    assert [due("[[hang once]]", 1, epoch) for epoch in (1, 2)] == [["hang"], []]


def test_several_directives_and_a_pace() -> None:
    script = read_script("a fox [[step_ms=250]] [[nsfw]] [[oom at=1]]")
    assert (script.step_ms, list(script.due(1, 1, 4))) == (250.0, ["nsfw", "oom"])
    assert list(script.but_also(["crash"]).due(1, 1, 4)) == ["nsfw", "oom", "crash"]


@pytest.mark.parametrize("prompt", ["[[]]", "[[nope]]", "[[oom at=x]]", "[[oom twice]]", "[[step_ms=fast]]"])
def test_what_cannot_be_meant_is_named(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^\[\["):
        read_script(prompt)
