"""The webhook key: kept over a restart, private, and refused when it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.files.private import DamagedSecretError
from server.jobs.signing import Signer


def test_the_key_survives_a_restart_and_is_private(tmp_path: Path) -> None:
    keys = Signer.of(tmp_path / "data").jwks()
    assert Signer.of(tmp_path / "data").jwks() == keys
    assert (tmp_path / "data" / "webhook-key.pem").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def another_kind_of_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    no = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no)


@pytest.mark.parametrize("damaged", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA", b"\xff\x00", another_kind_of_key()])
def test_a_damaged_key_is_refused_and_stays_as_it_is(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "webhook-key.pem"
    path.write_bytes(damaged)
    with pytest.raises(DamagedSecretError, match=r"webhook-key.pem is damaged .* put it back from a backup"):
        Signer.of(tmp_path)
    assert path.read_bytes() == damaged
