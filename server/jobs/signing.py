"""The key that signs webhooks, and how receivers check it: Ed25519 over four lines, as fal documents."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from server.files.private import DamagedSecretError, secret

USER_ID = "fluxserve"


class Signer:
    """Signs with one key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def of(cls, data_dir: Path) -> Signer:
        """With the key that lies in the data folder, made on first use. Raises: DamagedSecretError, OSError."""
        path = data_dir / "webhook-key.pem"
        try:
            key = load_pem_private_key(secret(path, _fresh_key), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise DamagedSecretError(
                f"{path} is damaged (no Ed25519 key in it): put it back from a backup, or delete it; receivers of "
                "webhooks must then fetch the new public key"
            )
        return cls(key)

    def headers(self, request_id: str, body: bytes, now: float) -> dict[str, str]:
        """The four headers of one delivery at Unix time `now`."""
        timestamp = str(int(now))
        message = "\n".join((request_id, USER_ID, timestamp, hashlib.sha256(body).hexdigest()))
        return {
            "x-fal-webhook-request-id": request_id,
            "x-fal-webhook-user-id": USER_ID,
            "x-fal-webhook-timestamp": timestamp,
            "x-fal-webhook-signature": self._key.sign(message.encode()).hex(),
        }

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public key as a key set. `x` is padded: fal's own Python example cannot decode it otherwise."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        x = base64.urlsafe_b64encode(raw).decode()
        key_id = hashlib.sha256(raw).hexdigest()[:16]
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key_id, "x": x}]}


def _fresh_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
