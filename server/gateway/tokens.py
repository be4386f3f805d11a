"""Short-lived tokens that stand for a key: realtime connections, uploads. Signed by a secret of this data folder."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any, Literal

import jwt

from server.files.private import DamagedSecretError, secret

Kind = Literal["realtime", "cdn", "upload"]
_ALGORITHM = "HS256"
_SECRET_BYTES = 32

UPLOAD_TTL_S = 86400
"""How long an upload address lives."""


class Tokens:
    """Issues and checks tokens; another server's, an expired or a tampered one is None.

    Args: secret: at least 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def of(cls, data_dir: Path) -> Tokens:
        """With the secret that lies in the data folder, made on first use. Raises: DamagedSecretError, OSError."""
        path = data_dir / "token-secret"
        found = secret(path, lambda: secrets.token_bytes(_SECRET_BYTES))
        if len(found) != _SECRET_BYTES:
            # A short secret would be accepted by every check, and can be guessed.
            raise DamagedSecretError(
                f"{path} is damaged ({len(found)} bytes, not {_SECRET_BYTES}): put it back from a backup, or delete "
                "it; realtime and upload tokens that are in use then end"
            )
        return cls(found)

    def issue(self, kind: Kind, lifetime_s: float, /, **claims: Any) -> str:
        """A URL-safe token that says `claims` for `lifetime_s` seconds."""
        return jwt.encode(claims | {"aud": kind, "exp": int(time.time() + lifetime_s)}, self._secret, _ALGORITHM)

    def read(self, kind: Kind, token: str) -> dict[str, Any] | None:
        """What a token of that kind says, or None if it is not valid now."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._secret, [_ALGORITHM], audience=kind, options={"require": ["exp", "aud"]}
            )
        except jwt.InvalidTokenError:
            return None
        return claims
