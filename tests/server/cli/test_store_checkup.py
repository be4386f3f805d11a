"""What the doctor says of a shared database: everything that a start would refuse, in a sentence, before it."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from server.cli.finding import Finding
from server.cli.store_checkup import shared_store
from server.jobs.store.postgres import session
from server.jobs.store.postgres.store import PostgresStore
from server.settings import Settings
from tests.server.postgres import the_server


def looked(folder: Path, address: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in shared_store(Settings(data_dir=folder, store=address))}


def test_without_a_shared_database_there_is_nothing_to_find(tmp_path: Path) -> None:
    assert shared_store(Settings(data_dir=tmp_path)) == []


def test_a_database_that_can_be_used_is_described(tmp_path: Path) -> None:
    address = the_server().schema()
    found = looked(tmp_path, address)
    wrong = {subject: finding.detail for subject, finding in found.items() if finding.verdict != "ok"}
    assert wrong == {"durability": "fsync is off: a power cut may damage what was acknowledged"}, "tests run without it"
    assert found["tables"].detail == "made at the first start"
    PostgresStore(address).close()
    assert looked(tmp_path, address)["tables"].detail == "as this version needs them, 0 nodes"


def test_a_clock_that_is_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 60)
    clock = looked(tmp_path, the_server().schema())["clock"]
    assert clock.verdict == "warning"
    assert "60.0 s ahead of the database's" in clock.detail


def test_who_may_not_make_tables_is_told_the_command(tmp_path: Path) -> None:
    address = the_server().schema()
    schema = address.rpartition("%3D")[2]
    with psycopg.connect(the_server().address, autocommit=True) as connection:
        for order in ("CREATE ROLE poor LOGIN", f"GRANT USAGE ON SCHEMA {schema} TO poor"):
            connection.execute(order.encode())
    permission = looked(tmp_path, address.replace("fluxserve@", "poor@"))["permission"]
    assert permission.verdict == "broken"
    assert permission.advice == f'GRANT CREATE, USAGE ON SCHEMA "{schema}" TO "poor"'
    nowhere = looked(tmp_path, f"{the_server().address}?options=-csearch_path%3Dnowhere")["permission"]
    assert "no schema of fluxserve's search_path exists" in nowhere.detail


@pytest.mark.parametrize(
    ("change", "subject", "said"),
    [
        ("INSERT INTO fluxserve_schema (version) VALUES (1000)", "tables", "a newer fluxserve has made them"),
        ("ALTER ROLE fluxserve SET default_transaction_read_only = on", "database", "session is read-only"),
    ],
)
def test_what_a_start_would_refuse_is_found(tmp_path: Path, change: str, subject: str, said: str) -> None:
    address = the_server().schema()
    PostgresStore(address).close()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(change.encode())
    try:
        finding = looked(tmp_path, address)[subject]
    finally:
        with psycopg.connect(f"{the_server().address}?options=-cdefault_transaction_read_only%3Doff") as connection:
            connection.execute("ALTER ROLE fluxserve RESET default_transaction_read_only")
    assert finding.verdict == "broken"
    assert said in finding.detail


def test_an_old_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OLDEST", 1000)
    assert looked(tmp_path, the_server().schema())["database"].advice == "it must be 1000 or later"


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    (finding,) = shared_store(Settings(data_dir=tmp_path, store="postgresql://u:secret@127.0.0.1:1/x"))
    assert finding.verdict == "broken"
    assert finding.detail.startswith("127.0.0.1:1/x cannot be used: ")
    assert "secret" not in f"{finding}"
