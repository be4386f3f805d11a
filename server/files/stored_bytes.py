"""How many bytes each tenant keeps: counted at every change, and anew whenever all files are looked at anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class StoredBytes:
    """Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bytes: Counter[str] = Counter()
        self._meanwhile: Counter[str] = Counter()
        """What has changed since a count began."""

    def of(self, tenant: str) -> int:
        """Bytes of one tenant; too few until the first count has ended."""
        with self._lock:
            return max(0, self._bytes[tenant])

    @property
    def total(self) -> int:
        """Bytes of all; too few until the first count has ended."""
        with self._lock:
            return sum(self._bytes.values())

    def add(self, tenant: str, size: int) -> None:
        """A file came, or with a negative size went."""
        with self._lock:
            self._bytes[tenant] += size
            self._meanwhile[tenant] += size

    @contextmanager
    def counting_anew(self) -> Iterator[Callable[[str, int], None]]:
        """Gives a function to call with the tenant and size of every file there is."""
        with self._lock:
            self._meanwhile = Counter()
        counted: Counter[str] = Counter()

        def count(tenant: str, size: int) -> None:
            counted[tenant] += size

        yield count
        with self._lock:
            counted.update(self._meanwhile)  # adds, negative sizes too
            self._bytes = counted
