"""The keys that were issued: a file of the data folder that holds their digests, read by every process of it.

Commands change it while a server runs, which looks at it every second.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from server.files.private import private_folder, replace_private
from server.jobs.limits import BudgetRule, Limits
from server.jobs.store.errors import StoreError

SECRET_BYTES = 32
LONGEST_NAME = 255


class KeyScope(StrEnum):
    """What a key may be used for."""

    RUN = "run"
    """Answers on the own connection: run, realtime and the OpenAI facade."""
    QUEUE = "queue"
    """Submit, status, result, cancel."""
    FILES = "files"
    """Send files."""
    ADMIN = "admin"
    """What is about everybody: the workers, the queue, usage of all keys, /metrics and /health from another machine."""


USUAL_SCOPES = (KeyScope.RUN, KeyScope.QUEUE, KeyScope.FILES)


class KeyFileError(StoreError):
    """The key file cannot be read or written."""


def check_name(name: str) -> str:
    """The name, if it can be shown in a line. Raises: ValueError."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a key's name is one line of at most {LONGEST_NAME} characters")
    return name


class IssuedKey(BaseModel):
    """One key as it is stored: nobody can make the key from it.

    Args:
        id: the part before the colon. name: a word for people. tenant: whose requests and files it reaches.
        digest: SHA-256 of the whole key in hex: enough for a secret of 256 random bits.
        created_at, revoked_at: Unix seconds; a revoked key stays listed.
        limits: what it says of its tenant's share; None leaves it to the server.
        budgets: what may be used with it, all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str = ""
    tenant: str
    digest: str
    scopes: tuple[KeyScope, ...]
    created_at: float
    revoked_at: float | None = None
    limits: Limits = Limits()
    budgets: tuple[BudgetRule, ...] = ()


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = 1
    keys: tuple[IssuedKey, ...] = ()


class KeyFile:
    """See the module. Args: path: the file; its folder is made when the first key is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> tuple[int, int, int] | None:
        """Something that differs after every change; None without a file. Cheap."""
        try:
            facts = self.path.stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def read(self) -> tuple[IssuedKey, ...]:
        """All keys, revoked ones too; none without a file. Raises: KeyFileError."""
        try:
            return _Content.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise KeyFileError(f"the key file {self.path} cannot be read: {exc.strerror}") from exc
        except ValidationError as exc:
            raise KeyFileError(f"the key file {self.path} is damaged; restore it or remove it") from exc

    def issue(
        self,
        name: str = "",
        tenant: str | None = None,
        scopes: Sequence[KeyScope] = USUAL_SCOPES,
        limits: Limits | None = None,
        budgets: Sequence[BudgetRule] = (),
    ) -> tuple[str, IssuedKey]:
        """Make a key: what its owner gets, this once, and what is stored. Raises: KeyFileError."""
        key_id = str(uuid.uuid4())
        key = f"{key_id}:{secrets.token_hex(SECRET_BYTES)}"
        issued = IssuedKey(
            id=key_id,
            name=name,
            tenant=tenant or key_id,
            digest=digest_of(key),
            scopes=tuple(scopes),
            created_at=time.time(),
            limits=limits or Limits(),
            budgets=tuple(budgets),
        )
        self._change(lambda keys: (*keys, issued))
        return key, issued

    def revoke(self, key_id: str) -> bool:
        """End a key for good; False if there is none of this id that still works. Raises: KeyFileError."""
        return self._update(key_id, lambda key: {"revoked_at": time.time()})

    def change(
        self,
        key_id: str,
        name: str | None = None,
        limits: Callable[[Limits], Limits] | None = None,
        budgets: Sequence[BudgetRule] | None = None,
    ) -> bool:
        """Give a key another name, the limits that follow from its own, other budgets; None keeps what it has.

        Returns: as above. Raises: KeyFileError."""

        def edit(key: IssuedKey) -> dict[str, object]:
            given = {
                "name": name,
                "limits": None if limits is None else limits(key.limits),
                "budgets": None if budgets is None else tuple(budgets),
            }
            return {field: value for field, value in given.items() if value is not None}

        return self._update(key_id, edit)

    def _update(self, key_id: str, edit: Callable[[IssuedKey], dict[str, object]]) -> bool:
        def updated(keys: tuple[IssuedKey, ...]) -> tuple[IssuedKey, ...]:
            return tuple(key.model_copy(update=edit(key)) if key.id == key_id else key for key in keys)

        has_it = any(key.id == key_id and key.revoked_at is None for key in self.read())
        if has_it:
            self._change(updated)
        return has_it

    def _change(self, edit: Callable[[tuple[IssuedKey, ...]], tuple[IssuedKey, ...]]) -> None:
        try:
            with self._locked():
                content = _Content(keys=edit(self.read()))
                replace_private(self.path, content.model_dump_json(indent=1).encode())
        except OSError as exc:
            raise KeyFileError(f"the key file {self.path} cannot be written: {exc.strerror}") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of all processes."""
        private_folder(self.path.parent)
        descriptor = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def digest_of(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
