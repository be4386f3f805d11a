"""The local certificate authority, made on first start and then kept, and the certificate it signs, renewed in time.

Python's fal client speaks only https, so a server without a certificate of its own is useless to it. The
authority never leaves DATA_DIR/tls; clients are pointed at it by environment, not by the system's trust store.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from server.http.authority import Identity, is_address, is_ours, make_authority, make_served
from server.settings import WILDCARD_HOSTS

logger = logging.getLogger("fluxserve.tls")

RENEW_BEFORE = timedelta(days=30)
AREA_LABELS = ("queue", "rest", "ws")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate files of one data folder lie.

    Args: own_certificate, own_key: an operator's, served in place of ours.
    """

    folder: Path
    own_certificate: Path | None = None
    own_key: Path | None = None

    @property
    def ca(self) -> Path:
        """The authority's certificate: what a client must trust."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """The served certificate, followed by the authority's."""
        return self.own_certificate or self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.own_key or self.folder / "server.key"

    @property
    def bundle(self) -> Path:
        """The public authorities and ours: one file for a process that talks to both."""
        return self.folder / "ca-bundle.pem"


def files_of(data_dir: Path) -> TlsFiles:
    """The certificate files below a data folder, whether they exist or not."""
    return TlsFiles(data_dir / "tls")


class TlsError(ValueError):
    """Certificate files are there and cannot be used; the sentence says what to do. They are left as they are."""


def ensure(data_dir: Path, names: Iterable[str], now: datetime | None = None) -> TlsFiles:
    """Make what is missing, and renew the certificate that we serve when it is near its end or lacks one of `names`.

    An authority is made only where there is none: clients trust the one they were given, and no clock, no damage and no
    lost right to read is a reason to replace it. A certificate of another's making is served as it is.

    Args: names: DNS names and IP addresses the served certificate must cover. now: injected by tests.
    Raises: OSError when the folder cannot be written. TlsError.
    """
    now = now or datetime.now(UTC)
    files = files_of(data_dir)
    _make_folders(data_dir)
    wanted = sorted(set(names))
    served = _load_if_any(files.server, files.server_key)
    if served is not None and not is_ours(served.certificate):
        _write_bundle(files, files.server.read_bytes())
        return files
    if served is not None and _is_good(served.certificate, wanted, now) and _was_signed_by(served, files.ca):
        authority = read_certificate(files.ca)
    else:
        authority = _serve_anew(files, wanted, now)
    _write_bundle(files, _pem(authority))
    return files


def own_files(data_dir: Path, certificate: Path, key: Path) -> TlsFiles:
    """An operator's own certificate chain and key, as `--tls-cert` and `--tls-key` name them.

    The bundle trusts it, too. Raises: TlsError. OSError when the bundle cannot be written."""
    _load(certificate, key)
    files = TlsFiles(data_dir / "tls", certificate, key)
    _make_folders(data_dir)
    _write_bundle(files, certificate.read_bytes())
    return files


def examine(data_dir: Path) -> tuple[Path, datetime | None]:
    """Where the certificate that a start would serve lies, and when it ends; None if it would be made. Writes nothing.

    Raises: TlsError."""
    files = files_of(data_dir)
    served = _load_if_any(files.server, files.server_key)
    if served is not None and not is_ours(served.certificate):
        return files.server, served.certificate.not_valid_after_utc
    _load_if_any(files.ca, files.ca_key)
    return files.server, None if served is None else served.certificate.not_valid_after_utc


def examine_own(certificate: Path, key: Path) -> tuple[Path, datetime | None]:
    """The same of an operator's own."""
    return certificate, _load(certificate, key).certificate.not_valid_after_utc


def _make_folders(data_dir: Path) -> None:
    # Each on its own: mkdir gives its mode to the last of them alone.
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data_dir / "tls").mkdir(exist_ok=True, mode=0o700)


def _write_bundle(files: TlsFiles, trusted: bytes) -> None:
    bundle = certifi.contents().encode() + trusted
    if not files.bundle.exists() or files.bundle.read_bytes() != bundle:
        _write(files.bundle, bundle)


def _serve_anew(files: TlsFiles, names: list[str], now: datetime) -> x509.Certificate:
    """Write a certificate that the authority has signed, made if there is none; returns the authority's."""
    authority = _load_if_any(files.ca, files.ca_key)
    if authority is None:
        authority = make_authority(now)
        _write_key(files.ca_key, authority.key)
        _write(files.ca, _pem(authority.certificate))
        logger.info("made a certificate authority, %s; clients must trust it", files.ca)
    if not isinstance(authority.key, ec.EllipticCurvePrivateKey):
        raise TlsError(
            f"{files.ca_key} is no elliptic-curve key: give your own certificate by --tls-cert and --tls-key"
        )
    if authority.certificate.not_valid_after_utc <= now:
        raise TlsError(
            f"{files.ca} ended on {authority.certificate.not_valid_after_utc:%Y-%m-%d}, if the clock is right "
            f"({now:%Y-%m-%d}): correct the clock, or delete {files.folder} to make a new authority"
        )
    served = make_served(authority, names, now)
    _write_key(files.server_key, served.key)
    _write(files.server, _pem(served.certificate) + _pem(authority.certificate))
    logger.info("made a certificate, %s, valid until %s", files.server, served.certificate.not_valid_after_utc.date())
    return authority.certificate


def served_names(host: str, public_url_host: str | None = None, also: Iterable[str] = ()) -> list[str]:
    """Every name under which clients may reach a server bound to `host`: its own, area names, and `also`.

    Asks no name server. A wildcard bind adds the addresses of all interfaces.
    """
    own = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}
    own |= _interface_addresses() if host in WILDCARD_HOSTS else {host.lower()}
    if public_url_host:
        own.add(public_url_host.lower())
    named = {name for name in own if not is_address(name)}
    return sorted(own | {f"{label}.{name}" for name in named for label in AREA_LABELS} | set(also))


def names_in(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses a certificate covers, sorted."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = extension.get_values_for_type(x509.IPAddress)
    return sorted([*extension.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)])


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate in the colon form that browsers show."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def read_certificate(file: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises OSError, ValueError."""
    return x509.load_pem_x509_certificate(file.read_bytes())


def _load_if_any(certificate_file: Path, key_file: Path) -> Identity | None:
    """What the two files hold; None if neither is there. Raises: TlsError for one without the other, or damage."""
    if not certificate_file.exists() and not key_file.exists():
        return None
    return _load(certificate_file, key_file)


def _load(certificate_file: Path, key_file: Path) -> Identity:
    try:
        certificate = read_certificate(certificate_file)
    except (OSError, ValueError) as exc:
        raise TlsError(_unusable(certificate_file, exc)) from exc
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise TlsError(_unusable(key_file, exc)) from exc
    if key.public_key() != certificate.public_key():
        raise TlsError(f"{key_file} is not the key of {certificate_file}: put the right one back")
    return Identity(certificate, key)


def _unusable(file: Path, exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"{file} cannot be read ({exc.strerror}): put it back, or let this user read it"
    if isinstance(exc, TypeError):
        return f"{file} is encrypted: give it without a password"
    return f"{file} is damaged: put it back from a backup, or delete it and its pair to have both made anew"


def _is_good(certificate: x509.Certificate, names: list[str], now: datetime) -> bool:
    """Whether it covers the names, is valid, and has not come near its end."""
    is_valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - RENEW_BEFORE
    return is_valid and set(names) <= set(names_in(certificate))


def _was_signed_by(served: Identity, ca_file: Path) -> bool:
    try:
        served.certificate.verify_directly_issued_by(read_certificate(ca_file))
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return True


def _interface_addresses() -> set[str]:
    entries = (entry for entries in psutil.net_if_addrs().values() for entry in entries)
    inet = (entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6))
    return {address for address in inet if "%" not in address}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(file: Path, key: PrivateKeyTypes) -> None:
    pkcs8 = serialization.PrivateFormat.PKCS8
    _write(file, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()), mode=0o600)


def _write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step, so that nobody reads half of it or a key under a loose mode."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        out.write(content)
    os.replace(temporary, file)
