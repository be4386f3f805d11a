"""The local authority: what it signs verifies strictly, and is renewed when it must be."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest

from server.gateway.areas import FAL_HOSTS
from server.http import tls

NAMES = tls.served_names("127.0.0.1", also=FAL_HOSTS)


def handshake(files: tls.TlsFiles, name: str, trust: Path) -> None:
    """One strict TLS handshake for `name` over a socket pair; raises ssl.SSLError."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(files.server, files.server_key)
    theirs = ssl.create_default_context(cafile=str(trust))
    theirs.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    a, b = socket.socketpair()

    def serve() -> None:
        try:
            ours.wrap_socket(a, server_side=True).close()
        except ssl.SSLError:
            a.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        theirs.wrap_socket(b, server_hostname=name).close()
    finally:
        b.close()
        thread.join(5)


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "::1", "queue.localhost", "queue.fal.run", "rest.alpha.fal.ai", "v3b.fal.media"]
)
def test_strict_clients_accept_every_served_name(tmp_path: Path, name: str) -> None:
    files = tls.ensure(tmp_path, NAMES)
    handshake(files, name, files.ca)
    handshake(files, name, files.bundle)


def test_a_name_that_is_not_served_is_refused(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, "example.com", files.ca)


def test_public_authorities_alone_do_not_trust_us(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, "localhost", Path(certifi.where()))


def test_openssl_verifies_strictly(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(files.ca),
        str(files.server),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_keys_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    for key in (files.ca_key, files.server_key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700


def test_nothing_changes_while_all_is_well(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    before = [file.read_bytes() for file in sorted(files.folder.iterdir())]
    tls.ensure(tmp_path, NAMES[:3])
    assert [file.read_bytes() for file in sorted(files.folder.iterdir())] == before


def test_a_new_name_or_age_renews_the_certificate_under_the_same_authority(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    authority, first = files.ca.read_bytes(), files.server.read_bytes()
    tls.ensure(tmp_path, [*NAMES, "gpu.lan", "10.0.0.7"])
    second = files.server.read_bytes()
    assert {"gpu.lan", "10.0.0.7", *NAMES} == set(tls.names_in(tls.read_certificate(files.server)))
    tls.ensure(tmp_path, [*NAMES, "gpu.lan", "10.0.0.7"], now=datetime.now(UTC) + timedelta(days=380))
    third = files.server.read_bytes()
    assert len({first, second, third}) == 3
    assert files.ca.read_bytes() == authority


def test_an_old_authority_is_replaced_with_what_it_signed(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES, now=datetime.now(UTC) - timedelta(days=3640))
    before = files.ca.read_bytes()
    tls.ensure(tmp_path, NAMES)
    assert files.ca.read_bytes() != before
    handshake(files, "localhost", files.ca)


@pytest.mark.parametrize("damaged", ["ca.pem", "ca.key", "server.pem", "server.key"])
def test_damaged_files_are_made_anew(tmp_path: Path, damaged: str) -> None:
    files = tls.ensure(tmp_path, NAMES)
    (files.folder / damaged).write_text("damaged")
    tls.ensure(tmp_path, NAMES)
    handshake(files, "localhost", files.ca)


def test_wildcard_bind_covers_this_machines_addresses() -> None:
    assert "127.0.0.1" in tls.served_names("0.0.0.0")
    assert "0.0.0.0" not in tls.served_names("0.0.0.0")
    assert {"gpu.lan", "queue.gpu.lan", "rest.gpu.lan", "ws.gpu.lan"} <= set(tls.served_names("gpu.lan"))
    assert "queue.10.0.0.7" not in tls.served_names("10.0.0.7")
    assert "queue.fal.example.com" in tls.served_names("127.0.0.1", "fal.example.com")
