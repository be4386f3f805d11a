"""`fluxserve store copy`, as an operator gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.failures import CommandError
from server.cli.main import app
from server.jobs.store.accounts import Search
from server.jobs.store.sqlite import SqliteStore
from tests.server.postgres import the_server
from tests.server.stores import new_job


def command(*words: str | Path) -> str:
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    store = SqliteStore(tmp_path / "jobs.db")
    for _ in range(3):
        store.enqueue(new_job())
    store.close()
    return tmp_path


def test_there_and_back_is_the_same(source: Path) -> None:
    address, back = the_server().schema(), source / "back.db"
    there = json.loads(command("store", "copy", source, address, "--json"))
    assert there["rows"]["job"] == 3
    said = command("store", "copy", address, back).splitlines()
    assert said[0].split() == ["3", "job"]
    assert said[-1] == f"verified: both are {there['digest']}"
    store = SqliteStore(back)
    assert [job.seq for job in store.find(Search(tenant=None), 10)] == [3, 2, 1]
    store.close()


def test_a_server_that_runs_is_not_copied(source: Path) -> None:
    running = SqliteStore(source / "jobs.db")
    with pytest.raises(CommandError, match="another fluxserve is using the data directory"):
        command("store", "copy", source, source / "copy.db")
    running.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere.db", "copy.db"), "there is no .*nowhere.db: a server keeps its requests in jobs.db"),
        (("jobs.db", "mysql://root:secret@host/x"), "^mysql://: give a file, or postgresql://"),
        (("jobs.db", "none/copy.db"), "cannot open .*none/copy.db.*: No such file"),
        (("jobs.db", "postgresql://u:secret@127.0.0.1:1/x"), "the database 127.0.0.1:1/x cannot be"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(source: Path, words: tuple[str, str], said: str) -> None:
    first, second = (word if "://" in word else str(source / word) for word in words)
    with pytest.raises(CommandError, match=said) as refused:
        command("store", "copy", first, second)
    assert "secret" not in str(refused.value)
