"""Tokens: only ours, only of their kind, only in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.files.private import DamagedSecretError
from server.gateway.tokens import Tokens


def test_a_token_says_what_was_issued(tmp_path: Path) -> None:
    tokens = Tokens.of(tmp_path)
    claims = tokens.read("upload", tokens.issue("upload", 60, key="abc"))
    assert claims is not None
    assert claims["key"] == "abc"


def test_the_secret_survives_a_restart_and_is_private(tmp_path: Path) -> None:
    token = Tokens.of(tmp_path).issue("cdn", 60)
    assert Tokens.of(tmp_path).read("cdn", token) is not None
    assert os.stat(tmp_path / "token-secret").st_mode & 0o077 == 0


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    tokens = Tokens.of(tmp_path / "a")
    assert tokens.read("upload", tokens.issue("cdn", 60)) is None
    assert tokens.read("cdn", tokens.issue("cdn", -5)) is None
    assert tokens.read("cdn", Tokens.of(tmp_path / "b").issue("cdn", 60)) is None
    token = tokens.issue("cdn", 60)
    assert tokens.read("cdn", token[:-4] + "AAAA") is None
    for nonsense in ("", "x", "a.b.c", "é.b.c"):
        assert tokens.read("cdn", nonsense) is None


@pytest.mark.parametrize("damaged", [b"", b"x", bytes(31), bytes(33)])
def test_a_secret_that_was_cut_short_is_refused_and_stays_as_it_is(tmp_path: Path, damaged: bytes) -> None:
    """With one byte left, a forged token took 256 guesses."""
    Tokens.of(tmp_path)
    path = tmp_path / "token-secret"
    path.write_bytes(damaged)
    with pytest.raises(DamagedSecretError, match=r"token-secret is damaged .* put it back from a backup"):
        Tokens.of(tmp_path)
    assert path.read_bytes() == damaged
