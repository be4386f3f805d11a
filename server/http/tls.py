"""The local certificate authority and the certificate it signs: made on first start, renewed when they age.

Python's fal client speaks only https, so a server without a certificate of its own is useless to it. The
authority never leaves DATA_DIR/tls; clients are pointed at it by environment, not by the system's trust store.
"""

from __future__ import annotations

import ipaddress
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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.settings import WILDCARD_HOSTS

CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=397)
"""Apple's clients refuse longer lives of server certificates."""
RENEW_BEFORE = timedelta(days=30)
CLOCK_SKEW = timedelta(hours=1)

AREA_LABELS = ("queue", "rest", "ws")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate files of one data folder lie."""

    folder: Path

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
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key"

    @property
    def bundle(self) -> Path:
        """The public authorities and ours: one file for a process that talks to both."""
        return self.folder / "ca-bundle.pem"


def files_of(data_dir: Path) -> TlsFiles:
    """The certificate files below a data folder, whether they exist or not."""
    return TlsFiles(data_dir / "tls")


def ensure(data_dir: Path, names: Iterable[str], now: datetime | None = None) -> TlsFiles:
    """Make or renew whatever is missing, damaged, near its end, or lacks one of `names`.

    Args: names: DNS names and IP addresses the served certificate must cover. now: injected by tests.
    Raises: OSError when the folder cannot be written.
    """
    now = now or datetime.now(UTC)
    files = files_of(data_dir)
    files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = sorted(set(names))
    authority = _load(files.ca, files.ca_key, now)
    if authority is None:
        authority = _make_authority(now)
        _write_key(files.ca_key, authority.key)
        _write(files.ca, _pem(authority.certificate))
    served = _load(files.server, files.server_key, now)
    if served is None or not _covers(served.certificate, wanted) or not _signed_by(served, authority):
        served = _make_served(authority, wanted, now)
        _write_key(files.server_key, served.key)
        _write(files.server, _pem(served.certificate) + _pem(authority.certificate))
    _write(files.bundle, certifi.contents().encode() + _pem(authority.certificate))
    return files


def served_names(host: str, public_url_host: str | None = None, also: Iterable[str] = ()) -> list[str]:
    """Every name under which clients may reach a server bound to `host`: its own, area names, and `also`.

    Asks no name server. A wildcard bind adds the addresses of all interfaces.
    """
    own = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}
    own |= _interface_addresses() if host in WILDCARD_HOSTS else {host.lower()}
    if public_url_host:
        own.add(public_url_host.lower())
    named = {name for name in own if not _is_address(name)}
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


@dataclass(frozen=True, slots=True)
class _Identity:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _load(certificate_file: Path, key_file: Path, now: datetime) -> _Identity | None:
    """What the two files hold, or None if it is missing, damaged, mismatched or near its end."""
    try:
        certificate = read_certificate(certificate_file)
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    if certificate.not_valid_after_utc - now < RENEW_BEFORE or certificate.not_valid_before_utc > now:
        return None
    return _Identity(certificate, key)


def _make_authority(now: datetime) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"fluxserve local CA ({socket.gethostname()})")
    certificate = (
        _draft(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(for_authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _make_served(authority: _Identity, names: list[str], now: datetime) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    life = min(SERVER_LIFE, authority.certificate.not_valid_after_utc - now)
    # Strict verification (OpenSSL's X509_STRICT, Python 3.13's default) wants the authority's key identifier.
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _draft(_name("fluxserve"), authority.certificate.subject, key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(for_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(for_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not for_authority,
        key_cert_sign=for_authority,
        crl_sign=for_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)


def _covers(certificate: x509.Certificate, names: list[str]) -> bool:
    return set(names) <= set(names_in(certificate))


def _signed_by(served: _Identity, authority: _Identity) -> bool:
    try:
        served.certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _interface_addresses() -> set[str]:
    entries = (entry for entries in psutil.net_if_addrs().values() for entry in entries)
    inet = (entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6))
    return {address for address in inet if "%" not in address}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pkcs8 = serialization.PrivateFormat.PKCS8
    _write(file, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()), mode=0o600)


def _write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step, so that nobody reads half of it or a key under a loose mode."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        out.write(content)
    os.replace(temporary, file)
