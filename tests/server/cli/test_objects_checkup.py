"""What the doctor says of a bucket: all that would keep pictures from being stored, in a sentence, before a start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from server.cli import objects_checkup
from server.cli.finding import Finding
from server.cli.objects_checkup import shared_files
from server.settings import Settings
from tests.server.s3_service import S3Service


def looked(s3: S3Service, **more: Any) -> dict[str, Finding]:
    settings = Settings(**{"objects": s3.new_url(), "s3_endpoint": s3.endpoint, **more})
    return {finding.subject: finding for finding in shared_files(settings)}


def test_without_a_bucket_there_is_nothing_to_find(tmp_path: Path) -> None:
    assert shared_files(Settings(data_dir=tmp_path)) == []


def test_a_bucket_that_can_be_used_is_described_and_left_as_it_was(s3: S3Service) -> None:
    url = s3.new_url()
    found = looked(s3, objects=url)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert found["bucket"].detail.startswith(f"{url} at 127.0.0.1:")
    assert "takes, gives and lists files" in found["bucket"].detail
    assert "the bucket's" in found["clock"].detail
    assert s3.files(url) == []


def test_a_clock_that_is_wrong_is_told(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() - 60)
    clock = looked(s3)["clock"]
    assert clock.verdict == "warning"
    assert "s behind the bucket's" in clock.detail


def test_what_is_wrong_comes_with_what_to_do(s3: S3Service) -> None:
    bucket = looked(s3, objects="s3://nowhere/x")["bucket"]
    assert bucket.verdict == "broken"
    assert bucket.detail.endswith("takes no files: there is no such bucket")
    assert bucket.advice == "make it, or correct --objects"


def test_a_service_that_is_not_there_is_told(s3: S3Service) -> None:
    (finding,) = looked(s3, s3_endpoint="http://127.0.0.1:1").values()
    assert (finding.verdict, "the service does not answer" in finding.detail) == ("broken", True)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        (finding,) = shared_files(Settings(data_dir=tmp_path, objects="s3://bucket"))
    assert (finding.verdict, "pip install 'boto3>=" in finding.detail) == ("broken", True)


def test_a_bucket_far_away_is_told(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_checkup, "FAR_MS", 0.0)
    assert looked(s3)["bucket"].verdict == "warning"


@pytest.mark.parametrize(
    ("endpoint", "public_url", "verdict"),
    [
        ("127.0.0.1", "https://fal.example.com", "warning"),
        ("127.0.0.1", None, "ok"),
        ("localhost", None, "warning"),
    ],
)
def test_where_clients_are_sent_must_be_a_place_that_they_reach(
    s3: S3Service, endpoint: str, public_url: str | None, verdict: str
) -> None:
    where = s3.endpoint.replace("127.0.0.1", endpoint)
    readers = looked(s3, s3_endpoint=where, s3_redirect=True, public_url=public_url)["readers"]
    assert readers.verdict == verdict
    assert where in readers.detail
