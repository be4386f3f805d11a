"""The local authority: what it signs verifies strictly, and is renewed when it must be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest

from server.http import renewal, tls
from server.http.names import FAL_HOSTS

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


def everything(files: tls.TlsFiles) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files.folder.iterdir()}


@pytest.mark.parametrize("days", [-4000, -400, -2, 20, 380, 3640, 5000])
def test_no_clock_replaces_the_authority(tmp_path: Path, days: int) -> None:
    files = tls.ensure(tmp_path, NAMES)
    authority = (files.ca.read_bytes(), files.ca_key.read_bytes())
    with contextlib.suppress(tls.TlsError):
        tls.ensure(tmp_path, NAMES, now=datetime.now(UTC) + timedelta(days=days))
    assert (files.ca.read_bytes(), files.ca_key.read_bytes()) == authority
    tls.ensure(tmp_path, NAMES)
    handshake(files, "localhost", files.ca)


def test_an_authority_that_has_ended_is_told_and_kept(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    before = everything(files)
    with pytest.raises(tls.TlsError, match="correct the clock, or delete"):
        tls.ensure(tmp_path, NAMES, now=datetime.now(UTC) + timedelta(days=5000))
    assert everything(files) == before


@pytest.mark.parametrize("damaged", ["ca.pem", "ca.key", "server.pem", "server.key"])
@pytest.mark.parametrize("damage", ["damaged", "", None])
def test_damaged_files_are_refused_and_stay_as_they_are(tmp_path: Path, damaged: str, damage: str | None) -> None:
    files = tls.ensure(tmp_path, NAMES)
    file = files.folder / damaged
    file.unlink() if damage is None else file.write_text(damage)
    before = everything(files)
    with pytest.raises(tls.TlsError, match=damaged):
        tls.ensure(tmp_path, [*NAMES, "another.name"])
    assert everything(files) == before


def test_a_good_certificate_is_served_without_the_authoritys_key(tmp_path: Path) -> None:
    files = tls.ensure(tmp_path, NAMES)
    files.ca_key.unlink()
    tls.ensure(tmp_path, NAMES)
    handshake(files, "localhost", files.bundle)


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """As an operator's own authority may have made it: RSA, one name."""
    folder.mkdir()
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gpu.example.com", "-days", "9"]
    command += ["-addext", "subjectAltName=DNS:gpu.example.com", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_a_certificate_of_anothers_making_is_served_as_it_is(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path / "own")
    files = tls.files_of(tmp_path)
    files.folder.mkdir()
    files.server.write_bytes(certificate.read_bytes())
    files.server_key.write_bytes(key.read_bytes())
    before = everything(files)
    tls.ensure(tmp_path, NAMES)
    assert {name: content for name, content in everything(files).items() if name != "ca-bundle.pem"} == before
    handshake(files, "gpu.example.com", files.bundle)


def test_an_operators_own_certificate_is_served_from_where_it_lies(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path / "own")
    files = tls.own_files(tmp_path / "data", certificate, key)
    assert (files.server, files.server_key) == (certificate, key)
    assert [file.name for file in files.folder.iterdir()] == ["ca-bundle.pem"]
    handshake(files, "gpu.example.com", files.bundle)
    other, _ = own_certificate(tmp_path / "other")
    with pytest.raises(tls.TlsError, match="is not the key of"):
        tls.own_files(tmp_path / "data", other, key)
    with pytest.raises(tls.TlsError, match="cannot be read"):
        tls.own_files(tmp_path / "data", tmp_path / "nowhere.pem", key)


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "LOOK_S", 0.01)
    certificate, key = own_certificate(tmp_path / "own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def served() -> bytes | None:
        a, b = socket.socketpair()
        answer = threading.Thread(target=lambda: context.wrap_socket(a, server_side=True).close())
        answer.start()
        client = ssl._create_unverified_context()
        with client.wrap_socket(b) as wrapped:
            found = wrapped.getpeercert(binary_form=True)
        answer.join()
        return found

    async def main() -> tuple[bytes | None, bytes | None, bytes | None]:
        keeper = asyncio.create_task(
            renewal.keep_certificate(context, lambda: tls.own_files(tmp_path / "data", certificate, key))
        )
        await asyncio.sleep(0.1)
        first = await asyncio.to_thread(served)
        newer, newer_key = own_certificate(tmp_path / "newer")
        os.replace(newer, certificate)  # for a moment, half of the pair is new
        await asyncio.sleep(0.1)
        between = await asyncio.to_thread(served)
        os.replace(newer_key, key)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if (last := await asyncio.to_thread(served)) != first:
                break
        keeper.cancel()
        return first, between, last

    first, between, last = asyncio.run(main())
    assert first == between
    assert last is not None
    assert last != first


def test_wildcard_bind_covers_this_machines_addresses() -> None:
    assert "127.0.0.1" in tls.served_names("0.0.0.0")
    assert "0.0.0.0" not in tls.served_names("0.0.0.0")
    assert {"gpu.lan", "queue.gpu.lan", "rest.gpu.lan", "ws.gpu.lan"} <= set(tls.served_names("gpu.lan"))
    assert "queue.10.0.0.7" not in tls.served_names("10.0.0.7")
    assert "queue.fal.example.com" in tls.served_names("127.0.0.1", "fal.example.com")
