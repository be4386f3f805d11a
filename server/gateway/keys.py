"""API keys: which admit, whose they are, and what they may be used for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers

from server.gateway.key_file import IssuedKey, KeyFile, KeyFileError, KeyScope, digest_of
from server.http.errors import PlainError
from server.jobs.limits import BudgetRule, Limits
from server.jobs.store.job import SHARED

log = logging.getLogger("fluxserve.keys")

NO_CREDENTIALS = 'Authentication is required: send the header "Authorization: Key YOUR_KEY"'
MALFORMED = 'Invalid Key Authorization header format: expected "Authorization: Key YOUR_KEY"'
UNKNOWN_KEY = "No user found for Key ID and Secret"

LOOK_EVERY_S = 1.0
"""How often the key file is looked at; a revoked key is refused after so long at most."""

CONFIGURED = "key-"
"""Ids of keys of the settings begin with it."""

NAME_DIGITS = 12
"""Of a configured key's digest, for the name of its tenant."""


class UnknownKeyError(PlainError):
    """A key was given that does not admit."""

    def __init__(self) -> None:
        super().__init__(401, UNKNOWN_KEY)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id of the key, whose requests and files it reaches, and what it may be used for."""

    key: str
    tenant: str
    scopes: frozenset[KeyScope]

    def require(self, scope: KeyScope) -> None:
        """Raises: PlainError 403 if the key is not for this."""
        if scope not in self.scopes:
            raise PlainError(403, f"This key may not be used here: it lacks the scope {scope}")


ANYBODY = Caller("", SHARED, frozenset(KeyScope))
"""Who asks an open server."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys at one moment."""

    by_digest: dict[str, Caller]
    by_id: dict[str, Caller]
    limits: dict[str, Limits]
    budgets: dict[str, tuple[BudgetRule, ...]]


class KeyRing:
    """The keys that open this server; without any, and without a key file, it is open.

    Args: configured: keys of the settings; each is a tenant of its own and may do all. file: the keys that were
        issued. defaults: limits of tenants whose keys name none.
    Raises: KeyFileError.
    """

    def __init__(
        self,
        configured: Iterable[str] = (),
        file: KeyFile | None = None,
        defaults: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured = {digest_of(key): _configured(key) for key in configured}
        self._file = file
        self._defaults = defaults or Limits()
        self._clock = clock
        self._looking = threading.Lock()
        self._stamp = file.stamp() if file else None
        self._keys = self._read()
        self._look_at = clock() + LOOK_EVERY_S
        self._is_open = not self._configured and self._stamp is None

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in. A server that asked for keys once does so until it ends."""
        self._look()
        return self._is_open

    @property
    def configured(self) -> list[str]:
        """The ids of the keys that the settings name; nobody can revoke them here."""
        return [caller.key for caller in self._configured.values()]

    def refresh(self) -> None:
        """Take note at once of a change to the file."""
        self._look(at_once=True)

    def check(self, headers: Headers) -> Caller:
        """Who asks; raises PlainError 401 with fal's words, UnknownKeyError for a wrong key.

        The scheme `Key` is compared without regard to case."""
        if self.is_open:
            return ANYBODY
        value = headers.get("authorization")
        if not value:
            raise PlainError(401, NO_CREDENTIALS)
        scheme, _, key = value.strip().partition(" ")
        if scheme.lower() not in ("key", "bearer") or not key.strip():
            raise PlainError(401, MALFORMED)
        # The digest is what is looked up: how long that takes says nothing about any key.
        digest = digest_of(key.strip())
        caller = self._keys.by_digest.get(digest)
        if caller is None:
            self._look(at_once=True)  # it may have been issued just now
            caller = self._keys.by_digest.get(digest)
        if caller is None:
            raise UnknownKeyError
        return caller

    def caller_of(self, key_id: object) -> Caller | None:
        """Who a token's key is, if it still admits."""
        if self.is_open:
            return ANYBODY
        return self._keys.by_id.get(key_id) if isinstance(key_id, str) else None

    def limits(self, tenant: str) -> Limits:
        """What a tenant may take: the tightest of its keys, and the server's own for what they leave open."""
        return self._keys.limits.get(tenant, self._defaults)

    def budgets(self, key_id: str) -> tuple[BudgetRule, ...]:
        """What may be used with a key; keys of the settings have none."""
        return self._keys.budgets.get(key_id, ())

    def _look(self, at_once: bool = False) -> None:
        """Take note of what commands have changed in the file."""
        now = self._clock()
        if self._file is None or (now < self._look_at and not at_once):
            return
        # One at a time: the keys of an older look must not meet the stamp of a newer one.
        with self._looking:
            self._look_at = now + LOOK_EVERY_S
            stamp = self._file.stamp()
            if stamp == self._stamp:
                return
            try:
                self._keys = self._read()
            except KeyFileError as exc:
                log.error("%s; the keys of before hold", exc)
            self._stamp, self._is_open = stamp, False

    def _read(self) -> _Keys:
        issued = self._file.read() if self._file else ()
        callers = {key.digest: _issued(key) for key in issued}
        # What was issued and revoked stays so, even if the settings name it, too.
        known = {**self._configured, **callers}
        by_digest = {digest: caller for digest, caller in known.items() if caller is not None}
        limits: dict[str, Limits] = {}
        for key in issued:
            if key.revoked_at is None:
                limits[key.tenant] = key.limits.within(limits.get(key.tenant, Limits()))
        return _Keys(
            by_digest,
            {caller.key: caller for caller in by_digest.values()},
            {tenant: own.over(self._defaults) for tenant, own in limits.items()},
            {key.id: key.budgets for key in issued if key.budgets},
        )


def _configured(key: str) -> Caller:
    name = f"{CONFIGURED}{digest_of(key)[:NAME_DIGITS]}"
    return Caller(name, name, frozenset(KeyScope))


def _issued(key: IssuedKey) -> Caller | None:
    return None if key.revoked_at is not None else Caller(key.id, key.tenant, frozenset(key.scopes))
