"""How often this process found in its caches what a request needed, since it started."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Cache = Literal["prompts", "adapters"]

_hits: Counter[Cache] = Counter()
_misses: Counter[Cache] = Counter()


def note(cache: Cache, is_hit: bool) -> None:
    """Something was looked for."""
    (_hits if is_hit else _misses)[cache] += 1


def counts() -> dict[str, list[int]]:
    """[found, not found] by cache, of those that were asked."""
    return {cache: [_hits[cache], _misses[cache]] for cache in sorted(_hits.keys() | _misses.keys())}
