"""Signed addresses of files: what was signed holds until its end, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.files.addresses import SignedAddresses
from server.files.private import DamagedSecretError

KEY, OTHER = "0" * 32 + ".png", "1" * 32 + ".png"


@pytest.fixture
def now() -> list[float]:
    return [1_000_000.0]


@pytest.fixture
def addresses(now: list[float]) -> SignedAddresses:
    return SignedAddresses(b"s" * 32, 600.0, lambda: now[0])


def test_an_address_holds_at_least_as_long_as_asked_and_then_no_more(
    addresses: SignedAddresses, now: list[float]
) -> None:
    query = addresses.query_for(KEY)
    end = addresses.end_of(KEY, query)
    assert end is not None
    assert 600.0 <= end - now[0] < 660.0
    now[0] = end - 1
    assert addresses.end_of(KEY, query) == end
    now[0] = end
    assert addresses.end_of(KEY, query) is None


def test_the_same_minute_signs_the_same_address(addresses: SignedAddresses, now: list[float]) -> None:
    now[0] = 1_000_030.0  # 10 s after a whole minute
    first = addresses.query_for(KEY)
    now[0] += 30.0
    assert addresses.query_for(KEY) == first


def test_no_other_file_end_or_secret_is_admitted(addresses: SignedAddresses) -> None:
    query = addresses.query_for(KEY)
    expires, signature = (part.partition("=")[2] for part in query.split("&"))
    assert addresses.end_of(OTHER, query) is None
    assert SignedAddresses(b"t" * 32, 600.0, lambda: 1_000_000.0).end_of(KEY, query) is None
    later, first = str(int(expires) + 60), "0" if signature[0] != "0" else "1"
    forged = [
        "", "expires=", f"expires={expires}", f"signature={signature}", f"expires={later}&signature={signature}",
        f"expires={expires}&signature={first}{signature[1:]}", f"expires={expires}&signature={signature.upper()}",
        f"expires={expires}&signature={signature}&x=1", f"expires={expires}&signature={signature}\n",
        f"expires=-1&signature={signature}", f"expires={'9' * 400}&signature={signature}", "expires=é&signature=é",
    ]  # fmt: skip
    assert [text for text in forged if addresses.end_of(KEY, text) is not None] == []


def test_the_secret_stays_over_a_restart_and_is_private(tmp_path: Path) -> None:
    query = SignedAddresses.of(tmp_path, 600.0).query_for(KEY)
    assert SignedAddresses.of(tmp_path, 60.0).end_of(KEY, query) is not None
    assert (tmp_path / "address-secret").stat().st_mode & 0o077 == 0


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "address-secret").write_bytes(b"")
    with pytest.raises(DamagedSecretError, match="put it back"):
        SignedAddresses.of(tmp_path, 600.0)
