"""What prompts became, kept for the next request with the same one, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from pipelines.protocol import lookups


class Embedding(Protocol):
    """What text encoders make of one prompt."""

    @property
    def nbytes(self) -> int: ...


E = TypeVar("E", bound=Embedding)


class PromptCache(Generic[E]):
    """The most recently used embeddings, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, int], E] = OrderedDict()
        self.nbytes = 0

    def get(self, prompt: str, max_length: int) -> E | None:
        found = self._entries.get((prompt, max_length))
        lookups.note("prompts", found is not None)
        if found is not None:
            self._entries.move_to_end((prompt, max_length))
        return found

    def put(self, prompt: str, max_length: int, embedding: E) -> None:
        """Keep it, dropping the least recently used; one larger than the whole cache is not kept."""
        if embedding.nbytes > self._max_bytes or (prompt, max_length) in self._entries:
            return
        self._entries[prompt, max_length] = embedding
        self.nbytes += embedding.nbytes
        while self.nbytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes
