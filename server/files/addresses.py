"""Addresses of files that end: `/files/KEY?expires=UNIX&signature=HEX`, for an operator who wants no lasting ones."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from server.files.private import DamagedSecretError, secret

_QUERY = re.compile(r"expires=(\d{1,12})&signature=([0-9a-f]{64})")
_SECRET_BYTES = 32
_ROUND_S = 60
"""Ends are whole minutes, so that a result that is read twice names the same address, and caches find it again."""


class SignedAddresses:
    """Signs the keys of files, and checks what it signed.

    Args: secret: at least 32 bytes. lifetime_s: how long an address holds at least. clock: Unix seconds.
    """

    def __init__(self, secret: bytes, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._lifetime_s = lifetime_s
        self._clock = clock

    @classmethod
    def of(cls, data_dir: Path, lifetime_s: float, clock: Callable[[], float] = time.time) -> SignedAddresses:
        """With the secret in the data folder, made on first use. Raises: DamagedSecretError, OSError."""
        path = data_dir / "address-secret"
        found = secret(path, lambda: secrets.token_bytes(_SECRET_BYTES))
        if len(found) != _SECRET_BYTES:
            # A short secret would be accepted by every check, and can be guessed.
            raise DamagedSecretError(
                f"{path} is damaged ({len(found)} bytes, not {_SECRET_BYTES}): put it back from a backup, or delete "
                "it; addresses of files that were handed out then end"
            )
        return cls(found, lifetime_s, clock)

    def query_for(self, key: str) -> str:
        """What to append to the address of this file, after a question mark."""
        expires = math.ceil((self._clock() + self._lifetime_s) / _ROUND_S) * _ROUND_S
        return f"expires={expires}&signature={self._signature(key, str(expires))}"

    def end_of(self, key: str, query: str) -> float | None:
        """Until when an address with this query admits to this file, in Unix seconds; None if it does not now."""
        asked = _QUERY.fullmatch(query)
        if asked is None or not hmac.compare_digest(self._signature(key, asked[1]), asked[2]):
            return None
        return float(asked[1]) if float(asked[1]) > self._clock() else None

    def _signature(self, key: str, expires: str) -> str:
        return hmac.new(self._secret, f"{key}\n{expires}".encode(), hashlib.sha256).hexdigest()
