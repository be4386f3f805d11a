"""Switches for speed: what is typed, and what a device makes of what is left open."""

from __future__ import annotations

from dataclasses import fields

import pytest

from models.tuning import PLAIN, Tuning, parse_tuning


def test_a_cpu_runs_plainly_unless_told_otherwise() -> None:
    assert Tuning().resolved("cpu") == PLAIN
    assert parse_tuning("fuse_mlp=on").resolved("cpu").fuse_mlp is True


@pytest.mark.parametrize("kind", ["cpu", "cuda", "a kind of tomorrow"])
def test_nothing_is_left_open_but_the_attention_to_be_measured(kind: str) -> None:
    resolved = Tuning().resolved(kind)
    open_switches = {field.name for field in fields(Tuning) if getattr(resolved, field.name) in ("auto", None)}
    assert open_switches <= {"attention"}


def test_off_turns_everything_off_on_every_device() -> None:
    assert parse_tuning("off").resolved("cuda") == PLAIN


@pytest.mark.parametrize("text", ["", "kernels=triton", "attention=fa3,fuse_qkv=off,compile_vae=on"])
def test_text_survives_the_way_to_a_worker(text: str) -> None:
    assert str(parse_tuning(text)) == text
    assert parse_tuning(str(parse_tuning(text))) == parse_tuning(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("speed=high", ["speed", "kernels"]), ("kernels=fast", ["fast", "triton"]), ("fuse_qkv", ["fuse_qkv", "on"])],
)
def test_a_wrong_switch_names_the_right_ones(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match="tuning") as caught:
        parse_tuning(text)
    for word in words:
        assert word in str(caught.value)
