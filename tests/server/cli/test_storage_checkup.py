"""What the doctor says of a data folder: everything that a start refuses, it finds before."""

from __future__ import annotations

import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.cli.finding import Finding
from server.cli.storage_checkup import certificate, storage
from server.files.folder_objects import FolderObjects
from server.gateway.tokens import Tokens
from server.http import tls
from server.jobs.signing import Signer
from server.jobs.store.sqlite import SqliteStore
from server.settings import Settings
from tests.server.stores import new_job


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a folder in which a server has run."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    store = SqliteStore(folder / "jobs.db")
    for _ in range(100):
        store.enqueue(new_job())
    store.close()
    FolderObjects(folder / "files")
    Tokens.of(folder)
    Signer.of(folder)
    tls.ensure(folder, ["localhost"])
    return Settings(data_dir=folder)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.verdict for finding in findings if finding.verdict != "ok"}


def test_a_sound_folder_is_ok(settings: Settings) -> None:
    assert wrong(storage(settings) + certificate(settings)) == {}


def test_a_folder_that_is_not_there_yet_is_ok_and_is_not_made(tmp_path: Path) -> None:
    fresh = Settings(data_dir=tmp_path / "a" / "b")
    assert wrong(storage(fresh) + certificate(fresh)) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "subject"),
    [
        ("jobs.db", b"no database" * 1000, "queue"),
        ("token-secret", b"short", "secret"),
        ("webhook-key.pem", b"", "secret"),
        ("tls/ca.key", b"damaged", "certificate"),
        ("tls/server.pem", b"damaged", "certificate"),
    ],
)
def test_what_is_damaged_is_found_and_left_alone(settings: Settings, name: str, content: bytes, subject: str) -> None:
    path = settings.data_dir / name
    path.write_bytes(content)
    assert wrong(storage(settings) + certificate(settings)) == {subject: "broken"}
    assert path.read_bytes() == content


def test_folders_that_take_no_files_are_found(settings: Settings) -> None:
    (settings.data_dir / "files" / "disk-probe").mkdir()
    assert wrong(storage(settings)) == {"pictures": "broken"}
    (settings.data_dir / "disk-probe").mkdir()
    assert wrong(storage(settings)) == {"pictures": "broken", "data folder": "broken"}


def test_what_others_may_read_is_a_warning(settings: Settings) -> None:
    settings.data_dir.chmod(0o755)
    (settings.data_dir / "token-secret").chmod(0o644)
    assert wrong(storage(settings)) == {"data folder": "warning", "secret": "warning"}


def test_a_secret_that_somebody_else_has_put_there_is_theirs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.data_dir / "token-secret").chmod(0o440)
    assert wrong(storage(settings)) == {"secret": "warning"}
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert wrong(storage(settings)) == {}


def test_a_machine_without_shared_memory_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(multiprocessing.get_context("fork"), "Lock", refuse)
    assert wrong(storage(settings)) == {"encoder": "broken"}


def test_a_certificate_that_has_ended_is_found(tmp_path: Path) -> None:
    old = Settings(data_dir=tmp_path)
    tls.ensure(tmp_path, ["localhost"], now=datetime.now(UTC) - timedelta(days=400))
    (found,) = certificate(old)
    assert (found.verdict, found.advice) == ("broken", "restart the server: it renews what it has made itself")
