"""C2PA: the operator's signature over a finished picture file and what it says of its making.

By the library of the C2PA's own members (`c2pa-python`, an optional extra), imported when the first file is signed.
Source: C2PA Technical Specification 2.2, actions assertion (`c2pa.created`) and IPTC's digital source types.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from models.extras import how_to_install
from server.files.provenance import TRAINED_ALGORITHMIC_MEDIA, Provenance

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

# Signing reaches nobody: no time stamps, no look-ups. The file is not read again after it is signed, and there is no
# thumbnail, each of which would cost more than the signature.
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}


class CredentialsError(Exception):
    """Files cannot be signed; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate chain, the signer's first, and its private key, both PEM; `algorithm` is C2PA's name of it."""

    chain: bytes
    key: bytes
    algorithm: str

    def __repr__(self) -> str:
        return f"Credentials({self.algorithm})"


def read(chain: Path, key: Path) -> Credentials:
    """What signs from now on, tried once. Raises: CredentialsError."""
    if importlib.util.find_spec("c2pa") is None:
        raise CredentialsError(f"--c2pa-cert needs an optional package: {how_to_install('c2pa')}")
    chain_pem, key_pem = _bytes_of("--c2pa-cert", chain), _bytes_of("--c2pa-key", key)
    credentials = Credentials(chain_pem, key_pem, _algorithm(chain_pem, key_pem))
    pixel = BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    sign(pixel.getvalue(), "image/png", Provenance("fluxserve", "", "", ""), credentials)
    return credentials


def sign(data: bytes, content_type: str, provenance: Provenance, credentials: Credentials) -> bytes:
    """The same picture file with a signed manifest, about 3 kB more; nothing may be written into it after this.

    Raises: CredentialsError."""
    import c2pa

    signed = BytesIO()
    try:
        signer, context = _signer(credentials)
        with c2pa.Builder(_manifest(provenance), context=context) as builder:
            builder.sign(signer, content_type, BytesIO(data), signed)
    except c2pa.C2paError as exc:
        raise CredentialsError(f"C2PA cannot sign with --c2pa-cert: {exc}") from exc
    return signed.getvalue()


@lru_cache(maxsize=1)
def _signer(credentials: Credentials) -> tuple[Any, Any]:
    import c2pa

    info = c2pa.C2paSignerInfo(credentials.algorithm, credentials.chain, credentials.key, None)
    return c2pa.Signer.from_info(info), c2pa.Context.from_dict(_SETTINGS)


def _manifest(provenance: Provenance) -> dict[str, Any]:
    """What is signed; never the prompt, which a signature would make undeniable."""
    name, _, version = provenance.software.partition(" ")
    created = {
        "action": "c2pa.created",
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
        "softwareAgent": {"name": provenance.model or name},
    }
    return {
        "claim_generator_info": [{"name": name, "version": version or "0"}],
        "title": provenance.request_id,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def _bytes_of(flag: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise CredentialsError(f"{flag} {file} cannot be read: {exc.strerror}") from exc


def _algorithm(chain: bytes, key: bytes) -> str:
    """By the kind of key. Raises: CredentialsError if it is none that C2PA knows, or not the certificate's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(chain)
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as exc:
        raise CredentialsError("--c2pa-cert and --c2pa-key must be PEM, the key without a password") from exc
    if private.public_key() != certificate.public_key():
        raise CredentialsError("--c2pa-key is not the key of the first certificate in --c2pa-cert")
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise CredentialsError("--c2pa-key must be an EC (P-256, P-384, P-521), Ed25519 or RSA key")
