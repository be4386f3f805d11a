"""How prompts are found by their words, where the database does not do it itself."""

from __future__ import annotations

import re
import unicodedata

MOST_WORDS = 8
"""Of a search; each more makes it longer for everybody."""

LONGEST_WORD = 100
"""Characters of a word that count."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Every word once, without case and accents."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return list(dict.fromkeys(word[:LONGEST_WORD] for word in _WORD.findall(plain.lower())))
